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
        self._info, self._tensors = info, len(info.arguments)
        self._extents = tuple(info.extents().values())
        self._grid = info.grid_function()
        self._kernel = _launch.Kernel(address, self._tensors, len(self._extents), workspace_bytes(info))

    def __call__(self, *arguments: torch.Tensor) -> None:
        """Run on tensors in the order of the kernel's signature; outputs are written in place.

        Raises:
            TypeError, ValueError: another number of tensors than the kernel takes, or one that is not contiguous.
        """
        pointers = tuple([argument.data_ptr() for argument in arguments if argument.is_contiguous()])
        if not len(pointers) == len(arguments) == self._tensors:
            self._info.check(arguments)
        extents = tuple([arguments[position].shape[axis] for position, axis in self._extents])
        self._kernel.launch(pointers, extents, self._grid(*extents), self._threads())
