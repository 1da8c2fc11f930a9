"""Runs a PTX kernel on NumPy arrays or CPU tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import kernelforge_cuda._virtual as _virtual
from kernelforge_cuda.virtual.describe import encode_tensor_map, evaluate

Schedule = _virtual.Schedule
Stats = _virtual.Stats
KernelFault = _virtual.KernelFault
PtxError = _virtual.PtxError


def memory_of(value: Any) -> tuple[int, int, bool] | None:
    """(address, bytes, writable) of an array or CPU tensor; None for a scalar.

    Raises:
        ValueError: the tensor is not contiguous or not in CPU memory.
    """
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous:
            raise ValueError(f"array of shape {value.shape} is not contiguous; pass np.ascontiguousarray of it")
        return value.ctypes.data, value.nbytes, bool(value.flags.writeable)
    if hasattr(value, "data_ptr"):
        if value.device.type != "cpu":
            raise ValueError(f"tensor on {value.device}; the virtual device works on CPU memory, pass tensor.cpu()")
        if not value.is_contiguous():
            raise ValueError(f"tensor of shape {tuple(value.shape)} is not contiguous; pass tensor.contiguous()")
        return value.data_ptr(), value.numel() * value.element_size(), True
    return None


def _scalar(value: Any, size: int) -> bytes | int | float:
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, float) and size == 2:
        return struct.pack("<e", value)
    return value


class VirtualKernel:
    """A kernel of a PTX module with the launch facts that ``launch_info`` gives.

    Args:
        ptx: PTX text, decoded once.
        info: ``launch_info`` of the artifact the PTX comes from.

    Raises:
        ValueError: an instruction that the executor does not know (named with its line), or no such entry.
    """

    def __init__(self, ptx: str, info: Mapping[str, Any]) -> None:
        self.program = _virtual.Program(ptx, info.get("rounded", False))
        self.info = info
        entries = {entry["name"]: entry for entry in self.program.entries}
        if info["entry"] not in entries:
            raise ValueError(f"the PTX has no entry '{info['entry']}'; it has {sorted(entries)}")
        self.entry = entries[info["entry"]]

    def __call__(
        self,
        arguments: Mapping[str, Any],
        *,
        schedule: _virtual.Schedule | None = None,
        check: bool = True,
        threads: int = 2,
    ) -> _virtual.Stats:
        """Launches the kernel.

        Args:
            arguments: value by parameter name: arrays or CPU tensors for pointers, numbers for scalars. Parameters
                that are tensor maps take the buffer they describe.
            schedule: order of warps and of asynchronous copies; ``Schedule()`` by default.
            check: also check happens-before over shared memory and the proxy rules.
            threads: CPU threads.

        Raises:
            ValueError: an argument is missing or not usable.
            RuntimeError: a fault of the kernel, with kernel, CTA, warp and source line.
        """
        scalars = {name: int(value) for name, value in arguments.items() if isinstance(value, (int, np.integer))}
        buffers: list[tuple[int, int, bool]] = []
        packed: list[Any] = []
        for name, parameter in zip(self.info["params"], self.entry["parameters"], strict=True):
            description = self.info["tma"].get(name)
            key = name if description is None else description["buffer"]
            if key not in arguments:
                raise ValueError(f"argument '{key}' is missing; the kernel takes {self.info['params']}")
            value = arguments[key]
            memory = memory_of(value)
            if memory is None:
                if description is not None:
                    raise ValueError(f"argument '{key}' is a {type(value).__name__}; the tensor map wants an array")
                packed.append(_scalar(value, parameter["size"]))
                continue
            if memory not in buffers and memory[1]:
                buffers.append(memory)
            packed.append(memory[0] if description is None else encode_tensor_map(description, memory[0], scalars))
        return self.program.launch(
            self.info["entry"],
            [evaluate(size, scalars) for size in self.info["grid"]],
            [evaluate(size, scalars) for size in self.info["block"]],
            evaluate(self.info["shared_bytes"], scalars),
            packed,
            buffers,
            schedule or Schedule(),
            check,
            threads,
        )


def run(
    ptx: str | _virtual.Program,
    entry: str,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[Any],
    *,
    shared_bytes: int = 0,
    schedule: _virtual.Schedule | None = None,
    check: bool = True,
    threads: int = 2,
    max_instructions: int = 0,
) -> _virtual.Stats:
    """Launches an entry with positional arguments: arrays or tensors, numbers, or dicts for tensor maps."""
    program = _virtual.Program(ptx) if isinstance(ptx, str) else ptx
    sizes = {item["name"]: [p["size"] for p in item["parameters"]] for item in program.entries}.get(entry, [])
    buffers: list[tuple[int, int, bool]] = []
    packed: list[Any] = []
    for position, value in enumerate(arguments):
        if isinstance(value, dict):
            address, nbytes, writable = memory_of(value["buffer"]) or (0, 0, False)
            buffers.append((address, nbytes, writable))
            packed.append({**{k: v for k, v in value.items() if k != "buffer"}, "address": address})
            continue
        memory = memory_of(value)
        if memory is None:
            packed.append(_scalar(value, sizes[position] if position < len(sizes) else 4))
        else:
            if memory[1]:
                buffers.append(memory)
            packed.append(memory[0])
    return program.launch(
        entry,
        list(grid),
        list(block),
        shared_bytes,
        packed,
        buffers,
        schedule or Schedule(),
        check,
        threads,
        max_instructions,
    )
