"""From tensors to a kernel's parameters, and the launch on a GPU."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from kernelforge.backends import DeviceUnavailable, LaunchInfo

from .driver import Driver, EncodedTensorMap, TensorMap, system_driver
from .nvcc import CUBIN

if TYPE_CHECKING:
    from collections.abc import Callable

ALIGNMENT = 16
"""Bytes: the widest global access and what a tensor map's address needs."""

_MOST_BLOCKS = 65535
"""Along the grid's second and third axis."""

_ENCODED_KEPT = 64
"""Tensor maps kept per kernel; steady states reuse a few."""


class Call(NamedTuple):
    """A launch before it meets a driver.

    Attributes:
        grid: three extents; all positive.
        values: one per parameter: an address, an integer, or a :class:`TensorMap`.
    """

    grid: tuple[int, int, int]
    values: tuple[int | TensorMap, ...]


class Marshaller:
    """Turns tensors into a :class:`Call`; needs no GPU.

    Args:
        info: as completed by ``finish``.

    Raises:
        ValueError: the kernel has a parameter that this launcher cannot provide.
    """

    def __init__(self, info: LaunchInfo) -> None:
        self.info = info
        self._names = {argument.name: i for i, argument in enumerate(info.arguments)}
        self._extents = list(info.extents().values())
        self._grid = info.grid_function()
        tma: dict[str, dict[str, Any]] = info.extra.get("tma", {})
        self._written = [self._names[name] for name in info.extra.get("writes", ())]
        extent_positions = {name: i for i, name in enumerate(info.extents())}
        self._sources: list[Callable[[Sequence[int], Sequence[int]], int | TensorMap]] = []
        for parameter in info.parameters:
            if parameter.kind == "tensor":
                self._sources.append(_take_pointer(self._names[parameter.name]))
            elif parameter.kind == "extent":
                self._sources.append(_take_extent(extent_positions[parameter.name], parameter.name, parameter.dtype))
            elif parameter.kind == "descriptor":
                description = tma[parameter.name]
                self._sources.append(_make_tensor_map(self._names[description["buffer"]], description, info))
            else:
                raise ValueError(f"{info.entry}: CUDA has no parameter of kind {parameter.kind!r} ({parameter.name})")

    def aligned(
        self, tensors: Sequence[torch.Tensor]
    ) -> tuple[Sequence[torch.Tensor], Sequence[tuple[torch.Tensor, torch.Tensor]]]:
        """Replace tensors that begin between multiples of :data:`ALIGNMENT`, such as slices of a batch, by copies.

        Returns:
            The tensors to launch on, and for each replaced one that is written the pair (original, copy).
        """
        if not any(tensor.data_ptr() % ALIGNMENT for tensor in tensors):
            return tensors, ()
        moved = [tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor for tensor in tensors]
        return moved, [(tensors[i], moved[i]) for i in self._written if moved[i] is not tensors[i]]

    def call(self, tensors: Sequence[torch.Tensor]) -> Call | None:
        """Grid and parameter values for ``tensors``; ``None`` where there is nothing to write.

        Raises:
            TypeError: another number of tensors than the kernel takes.
            ValueError: a tensor that is not contiguous or not aligned, or more blocks than CUDA launches.
        """
        self.info.check(tensors)
        pointers = [tensor.data_ptr() for tensor in tensors]
        for argument, pointer in zip(self.info.arguments, pointers, strict=True):
            if pointer % ALIGNMENT:
                raise ValueError(f"{argument.name} is at an address that is not a multiple of {ALIGNMENT}")
        extents = [tensors[position].shape[axis] for position, axis in self._extents]
        grid = (*self._grid(*extents), 1, 1)[:3]
        if max(grid[1:]) > _MOST_BLOCKS:
            raise ValueError(
                f"{self.info.entry}: needs {grid} blocks for extents {extents}; CUDA launches at most {_MOST_BLOCKS} "
                "along the second and third axis; split the batch"
            )
        if 0 in grid or (self._written and all(tensors[i].numel() == 0 for i in self._written)):
            return None
        values = tuple(source(pointers, extents) for source in self._sources)
        return Call((grid[0], grid[1], grid[2]), values)


def _take_pointer(position: int) -> Callable[[Sequence[int], Sequence[int]], int]:
    return lambda pointers, extents: pointers[position]


def _take_extent(position: int, name: str, dtype: str) -> Callable[[Sequence[int], Sequence[int]], int]:
    limit = 2**31 if dtype == "int32" else 2**63

    def take(pointers: Sequence[int], extents: Sequence[int]) -> int:
        if extents[position] >= limit:
            raise ValueError(f"extent {name} is {extents[position]}; at most {limit - 1} is supported")
        return extents[position]

    return take


def _make_tensor_map(
    position: int, description: dict[str, Any], info: LaunchInfo
) -> Callable[[Sequence[int], Sequence[int]], TensorMap]:
    rank: int = description["rank"]
    expressions = tuple(str(value) for value in (*description["dims"], *description["strides"]))
    evaluate = replace(info, grid=expressions).grid_function()

    def make(pointers: Sequence[int], extents: Sequence[int]) -> TensorMap:
        numbers = evaluate(*extents)
        return TensorMap(
            description["dtype"],
            pointers[position],
            numbers[:rank],
            numbers[rank:],
            tuple(description["box"]),
            tuple(description["element_strides"]),
            description["interleave"],
            description["swizzle"],
            description["l2"],
            description["oob"],
        )

    return make


class _ParameterBlock(threading.local):
    """Per thread: the values of scalar parameters and the array of addresses that a launch takes."""

    def __init__(self, count: int) -> None:
        self.values = (ctypes.c_uint64 * count)()
        self.addresses = (ctypes.c_void_p * count)()
        start = ctypes.addressof(self.values)
        self.own = [start + 8 * i for i in range(count)]


class CudaExecutable:
    """A cubin on the GPU that holds its arguments.

    Launches go to PyTorch's current stream and allocate nothing, so they can be captured into a CUDA graph.

    Args:
        image: the cubin.
        info: as completed by ``finish``.
        driver: the CUDA driver.
        current_stream: stream handle by device index; PyTorch's current stream by default.
    """

    def __init__(
        self,
        image: bytes,
        info: LaunchInfo,
        driver: Driver,
        current_stream: Callable[[int], int] | None = None,
    ) -> None:
        self._image, self._info, self._driver = image, info, driver
        self._marshaller = Marshaller(info)
        self._stream: Callable[[int], int] = current_stream or raw_stream()
        self._functions: dict[int, int] = {}
        self._encoded: dict[TensorMap, EncodedTensorMap] = {}
        self._parameters = _ParameterBlock(len(info.parameters))

    def prepare(self, device: int) -> int:
        """Load the kernel on device ``device``, so that the first launch can already be captured into a graph."""
        function = self._functions.get(device)
        if function is None:
            function = self._driver.load(self._image, self._info.entry, self._info.shared_bytes)
            self._functions[device] = function
        return function

    def __call__(self, *arguments: torch.Tensor) -> None:
        tensors, copies = self._marshaller.aligned(arguments)
        call = self._marshaller.call(tensors)
        if call is None:
            return
        self._launch(call, tensors[0].get_device())
        for original, copy in copies:
            original.copy_(copy)

    def _launch(self, call: Call, device: int) -> None:
        with self._driver.on_device(device):
            function = self.prepare(device)
            block = self._parameters
            kept = []
            for i, value in enumerate(call.values):
                if isinstance(value, TensorMap):
                    kept.append(self._encode(value))
                    block.addresses[i] = kept[-1].address
                else:
                    block.values[i] = value
                    block.addresses[i] = block.own[i]
            self._driver.launch(
                function,
                call.grid,
                self._info.threads,
                self._info.shared_bytes,
                self._stream(device),
                block.addresses,
            )

    def _encode(self, tensor_map: TensorMap) -> EncodedTensorMap:
        encoded = self._encoded.get(tensor_map)
        if encoded is None:
            encoded = self._driver.encode(tensor_map)
            if len(self._encoded) >= _ENCODED_KEPT:
                self._encoded.clear()
            self._encoded[tensor_map] = encoded
        return encoded


def raw_stream() -> Callable[[int], int]:
    """PyTorch's current stream as a function of the device index, without making a Stream object where that can be."""
    quick: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return quick or (lambda device: int(torch.cuda.current_stream(device).cuda_stream))


def load(directory: Path, info: LaunchInfo) -> CudaExecutable:
    """The kernel whose machine code is in ``directory``, loaded on PyTorch's current GPU.

    Raises:
        DeviceUnavailable: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise DeviceUnavailable("device 'cuda' cannot run here: torch.cuda.is_available() is false")
    executable = CudaExecutable((directory / CUBIN).read_bytes(), info, system_driver())
    device = torch.cuda.current_device()
    torch.cuda.init()
    with system_driver().on_device(device):
        executable.prepare(device)
    return executable
