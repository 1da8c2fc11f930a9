"""Compiled kernels of compression, forward and backward."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...backends import Executable
from ...backends.capabilities import FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, schedule
from ..support import choose_device

NEEDS = frozenset({FP32_IEEE, INT32})
BUILDERS = {
    "compress": "kernel",
    "compress_state": "kernel",
    "entry_gradient": "kernel_backward",
    "token_gradient": "kernel_backward",
    "sum_of_parts": "kernel_backward",
}
"""Kernels and the modules that build them."""


def kernel_spec(kernel: str, device: str, **given: Any) -> KernelSpec:
    """A kernel with its schedule on a device."""
    tiles = schedule("compress", device, kernel=kernel, **given)
    return KernelSpec.of(f"{__package__}.{BUILDERS[kernel]}:{kernel}", NEEDS, **given, **tiles)


@functools.lru_cache(maxsize=4096)
def compiled(
    kernel: str, device: torch.device, backend: str | None, dtype: torch.dtype | None, **given: Any
) -> Executable:
    """The loaded kernel for tensors on ``device``; ``dtype`` is the tokens', for kernels that touch them."""
    where = choose_device(backend, device)
    if dtype is not None:
        given["dtype"] = str(dtype).removeprefix("torch.")
    return executable(kernel_spec(kernel, where, **given), where)


def rows(x: torch.Tensor) -> torch.Tensor:
    """[B, S, channels] as a matrix."""
    return x.view(-1, x.shape[-1])
