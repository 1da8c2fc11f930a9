"""A kernel on the virtual device, called with tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kernelforge.backends import LaunchInfo, execution

from . import virtual
from .marshal import Marshaller, Memory

if TYPE_CHECKING:
    import torch


class VirtualExecutable:
    """Runs on CPU tensors.

    Args:
        directory: what the backend built.
        info: how to call it.
    """

    def __init__(self, directory: Path, info: LaunchInfo) -> None:
        self._directory = directory
        self._signature = virtual.signature((directory / f"{virtual.CHECKED_STEM}.cpp").read_text())
        self._rounded = info.rounded
        self._marshal = Marshaller(info, "cpu")

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Run on tensors in the order of the kernel's signature, as :mod:`kernelforge.backends.execution` says;
        outputs are written in place."""
        chosen = execution.current()
        self.run(tensors, virtual.Schedule(chosen.order, chosen.seed, chosen.check))

    def blocks(self, tensors: Sequence[torch.Tensor]) -> int:
        """Blocks that a launch on ``tensors`` has."""
        return self._marshal.blocks(tensors)

    def run(self, tensors: Sequence[torch.Tensor], schedule: virtual.Schedule) -> None:
        """As a call, under a given schedule.

        Raises:
            TypeError, ValueError: the tensors do not fit the kernel's signature.
            VirtualFault: the virtual device found a fault in the kernel.
        """
        blocks = self.blocks(tensors)
        if blocks == 0:
            return
        scratch: dict[str, np.ndarray] = {}

        def workspace(name: str, nbytes: int) -> Memory:
            scratch[name] = np.empty(nbytes, np.uint8)
            return Memory(scratch[name].ctypes.data, nbytes)

        values = self._marshal.values(tensors, blocks, workspace)
        library = virtual.library(self._directory, checked=schedule.check)
        virtual.launch(
            library,
            values,
            blocks,
            schedule,
            kernel=self._signature,
            workspaces=tuple(scratch),
            rounded=self._rounded,
        )
