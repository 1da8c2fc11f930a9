"""A kernel on the virtual device, called with tensors."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kernelforge.backends import LaunchInfo
from kernelforge.backends.launch import dtype_bytes

from . import virtual

if TYPE_CHECKING:
    import torch

SCHEDULE = "KERNELFORGE_ASCEND_SCHEDULE"
"""Order of events, ``early``, ``late`` or ``random:SEED``; with ``+check`` behind it the checkers run."""


def schedule_of(text: str) -> virtual.Schedule:
    """Parse the value of :data:`SCHEDULE`.

    Raises:
        ValueError: the text names no order, or its seed is no integer.
    """
    order, plus, check = text.partition("+")
    name, _, seed = order.partition(":")
    if name not in virtual.SCHEDULES or (plus and check != "check") or not (seed or "0").isdigit():
        raise ValueError(
            f"{SCHEDULE} is {text!r}; use early, late or random:SEED, with +check behind it to run the checkers"
        )
    return virtual.Schedule(name, int(seed or 0), bool(plus))


class VirtualExecutable:
    """Runs on CPU tensors.

    Args:
        directory: what the backend built.
        info: how to call it.
    """

    def __init__(self, directory: Path, info: LaunchInfo) -> None:
        self._info = info
        self._directory = directory
        self._source = (directory / f"{virtual.STEM}.cpp").read_text()
        self._signature = virtual.signature(self._source)
        self._grid = info.grid_function()
        self._extents = list(info.extents().items())
        self._names = {argument.name: i for i, argument in enumerate(info.arguments)}

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Run on tensors in the order of the kernel's signature; outputs are written in place."""
        self.run(tensors, schedule_of(os.environ.get(SCHEDULE, "late")))

    def run(self, tensors: tuple[torch.Tensor, ...], schedule: virtual.Schedule) -> None:
        """As a call, under a given schedule.

        Raises:
            TypeError: another number of tensors than the kernel takes.
            ValueError: a tensor that is not on the CPU or not contiguous.
            VirtualFault: the virtual device found a fault in the kernel.
        """
        info = self._info
        if len(tensors) != len(info.arguments):
            raise TypeError(f"{info.entry} takes {len(info.arguments)} tensors, given {len(tensors)}")
        for argument, tensor in zip(info.arguments, tensors, strict=True):
            if tensor.device.type != "cpu" or not tensor.is_contiguous():
                raise ValueError(
                    f"{argument.name} must be a contiguous CPU tensor; pass {argument.name}.cpu().contiguous()"
                )
        extents = {name: tensors[position].shape[axis] for name, (position, axis) in self._extents}
        blocks = math.prod(self._grid(*extents.values()))
        if blocks == 0:
            return
        scratch = {
            workspace.name: np.empty(blocks * math.prod(workspace.shape) * dtype_bytes(workspace.dtype), np.uint8)
            for workspace in info.workspaces
        }
        values: list[object] = []
        for parameter in info.parameters:
            if parameter.kind == "tensor":
                tensor = tensors[self._names[parameter.name]]
                values.append(virtual.Memory(tensor.data_ptr(), tensor.numel() * tensor.element_size()))
            elif parameter.kind == "workspace":
                values.append(scratch[parameter.name])
            else:
                values.append(extents[parameter.name])
        virtual.launch(
            virtual.library(self._directory, checked=schedule.check),
            values,
            blocks,
            schedule,
            kernel=self._signature,
            workspaces=tuple(scratch),
        )
