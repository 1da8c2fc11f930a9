"""A compiled kernel, loaded and called."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from kernelforge.backends import LaunchInfo

from . import _launch
from .compiler import ENTRY, workspace_bytes

if TYPE_CHECKING:
    import torch


class CpuExecutable:
    """Runs a kernel's blocks over torch's number of threads."""

    def __init__(self, library: Path, info: LaunchInfo) -> None:
        import torch

        self._threads = torch.get_num_threads
        self._library = ctypes.CDLL(str(library))
        address = ctypes.cast(getattr(self._library, ENTRY), ctypes.c_void_p).value
        self._extents = tuple(info.extents().values())
        self._grid = info.grid_function()
        self._kernel = _launch.Kernel(address, len(info.arguments), len(self._extents), workspace_bytes(info))

    def __call__(self, *arguments: torch.Tensor) -> None:
        extents = tuple([arguments[position].shape[axis] for position, axis in self._extents])
        pointers = tuple([argument.data_ptr() for argument in arguments])
        self._kernel.launch(pointers, extents, self._grid(*extents), self._threads())
