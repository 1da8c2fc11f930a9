"""The virtual device: compiled PTX executed on CPU tensors."""

from __future__ import annotations

import os

import torch

from kernelforge.backends import LaunchInfo, execution

from .launch import Marshaller
from .virtual import Schedule, VirtualKernel


class VirtualExecutable:
    """A kernel on the PTX executor.

    Args:
        ptx: text that nvcc made.
        info: as completed by ``finish``.
    """

    def __init__(self, ptx: str, info: LaunchInfo) -> None:
        self._info, self._marshaller = info, Marshaller(info)
        self._kernel = VirtualKernel(ptx, description(info))

    def __call__(self, *arguments: torch.Tensor) -> None:
        """Run to completion, as :mod:`kernelforge.backends.execution` says; tensors are in CPU memory.

        Raises:
            TypeError, ValueError: tensors that a GPU launch would not take either.
            RuntimeError: a fault of the kernel: a race, a missing wait, an access out of bounds, a deadlock.
        """
        tensors, copies = self._marshaller.aligned(arguments)
        if self._marshaller.call(tensors) is None:
            return
        values: dict[str, object] = {a.name: tensor for a, tensor in zip(self._info.arguments, tensors, strict=True)}
        values.update({name: tensors[i].shape[axis] for name, (i, axis) in self._info.extents().items()})
        chosen = execution.current()
        schedule = Schedule(chosen.seed, chosen.order, chosen.preempt)
        self._kernel(values, schedule=schedule, check=chosen.check, threads=os.cpu_count() or 1)
        for original, copy in copies:
            original.copy_(copy)


def description(info: LaunchInfo) -> dict[str, object]:
    """Launch information as ``VirtualKernel`` takes it."""
    return {
        "entry": info.entry,
        "grid": [*info.grid, "1", "1"][:3],
        "block": list(info.threads),
        "shared_bytes": info.shared_bytes,
        "params": [parameter.name for parameter in info.parameters],
        "tma": info.extra["tma"],
        "rounded": info.rounded,
    }
