"""From a traced kernel to its result on the virtual device."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernelforge.lowering import Lowered, lower
from kernelforge_ascend.backend import VIRTUAL, VIRTUAL_ARCH, AscendBackend
from kernelforge_ascend.virtual import Schedule
from kernelforge_ascend.virtual_executable import VirtualExecutable

backend = AscendBackend()
SCHEDULES = [
    Schedule("late", check=True),
    Schedule("early", check=True),
    Schedule("random", seed=1, check=True),
    Schedule("random", seed=2),
]


@functools.cache
def lowered(builder: Callable[..., Any], *parameters: Any) -> Lowered:
    return lower(builder(*parameters), backend, VIRTUAL_ARCH)


@functools.cache
def _workplace() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kernelforge-ascend-test-")


@functools.cache
def executable(builder: Callable[..., Any], *parameters: Any) -> VirtualExecutable:
    result = lowered(builder, *parameters)
    directory = Path(tempfile.mkdtemp(dir=_workplace().name))
    backend.build(result.source, result.info, VIRTUAL_ARCH, directory)
    loaded = backend.load(directory, result.info, VIRTUAL)
    assert isinstance(loaded, VirtualExecutable)
    return loaded


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)


def assert_bits(kernel: VirtualExecutable, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
    """Run under every schedule; each time the outputs have exactly the bits of ``outputs``."""
    for schedule in SCHEDULES:
        found = [np.full(out.shape, 77, out.dtype) for out in outputs]
        kernel.run(tuple(map(tensor, (*inputs, *found))), schedule)
        for wanted, got in zip(outputs, found, strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8), err_msg=str(schedule))
