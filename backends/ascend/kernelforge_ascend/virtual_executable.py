"""A kernel on the virtual device, called with tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kernelforge.backends import LaunchInfo

from . import virtual
from .marshal import Marshaller, Memory

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
    name, colon, seed = order.partition(":")
    if name not in virtual.SCHEDULES or (plus and check != "check") or (colon and not seed.isdigit()):
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
        self._directory = directory
        self._signature = virtual.signature((directory / f"{virtual.STEM}.cpp").read_text())
        self._marshal = Marshaller(info, "cpu")

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Run on tensors in the order of the kernel's signature; outputs are written in place."""
        self.run(tensors, schedule_of(os.environ.get(SCHEDULE, "late")))

    def run(self, tensors: Sequence[torch.Tensor], schedule: virtual.Schedule) -> None:
        """As a call, under a given schedule.

        Raises:
            TypeError, ValueError: the tensors do not fit the kernel's signature.
            VirtualFault: the virtual device found a fault in the kernel.
        """
        blocks = self._marshal.blocks(tensors)
        if blocks == 0:
            return
        scratch: dict[str, np.ndarray] = {}

        def workspace(name: str, nbytes: int) -> Memory:
            scratch[name] = np.empty(nbytes, np.uint8)
            return Memory(scratch[name].ctypes.data, nbytes)

        values = self._marshal.values(tensors, blocks, workspace)
        library = virtual.library(self._directory, checked=schedule.check)
        virtual.launch(library, values, blocks, schedule, kernel=self._signature, workspaces=tuple(scratch))
