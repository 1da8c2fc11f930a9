"""Every primitive gives its NumPy twin's bits on every device that can run here, real or virtual.

The code that each backend generates is executed: a compiler on the way that reorders, contracts or cancels shows here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kernelforge import backends
from kernelforge.numerics import elementary, exact_dot, row_sum
from kernelforge.runtime import KernelSpec, executable

sys.path.insert(0, str(Path(__file__).parent))

DEVICES = [d.name for owner in backends.backends().values() for d in owner.devices() if d.available]
FUNCTIONS = ["exp2", "exp", "recip", "rsqrt", "sigmoid", "silu", "softplus"]


def _run(device: str, builder: str, inputs: list[np.ndarray], out: np.ndarray, **parameters: object) -> np.ndarray:
    spec = KernelSpec.of(f"primitive_kernels:{builder}", **parameters)
    owner, chosen = backends.device(device)
    home = "cpu" if chosen.virtual else owner.tensor_device
    tensors = [torch.from_numpy(array).to(home) for array in (*inputs, out)]
    executable(spec, device)(*tensors)
    return tensors[-1].cpu().numpy()


def _special_values(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random bit patterns, values near the elementary functions' domains, and every kind of special value."""
    bits = rng.integers(0, 2**32, (rows, columns), dtype=np.uint64).astype(np.uint32).view(np.float32)
    tame = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-3, 3, (rows, columns))).astype(np.float32)
    x = np.where(rng.random((rows, columns)) < 0.5, bits, tame)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 2.0**-50, 2.0**-126, 3.4e38, 1.0, -1.0])
    x.flat[: special.size] = special.astype(np.float32)
    return x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("a_dtype", ["int8", "int16"])
def test_exact_dot_is_exact(device: str, a_dtype: str) -> None:
    rng = np.random.default_rng(0)
    limit = 128 if a_dtype == "int8" else 32640
    a = rng.integers(-limit + 1, limit, (50, 64)).astype(a_dtype)
    b = rng.integers(-128, 128, (32, 64)).astype(np.int8)
    a[0], b[0] = -(limit - 1), -128
    out = _run(device, "exact_dot", [a, b], np.zeros((50, 32), np.int32), N=32, K=64, a_dtype=a_dtype, block_M=32)
    assert np.array_equal(out, exact_dot.exact_dot(a, b))


@pytest.mark.parametrize("device", DEVICES)
def test_row_sums_are_taken_in_the_written_order(device: str) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((40, 160)) * 2.0 ** rng.integers(-20, 20, (40, 160))).astype(np.float32)
    out = _run(device, "row_sum", [x], np.zeros(40, np.float32), columns=160, block_M=32)
    assert np.array_equal(out.view(np.int32), row_sum.row_sum(x).view(np.int32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_elementary_functions_have_their_twins_bits(device: str, function: str) -> None:
    x = _special_values(np.random.default_rng(2), 70, 64)
    out = _run(device, "elementwise", [x], np.zeros_like(x), function=function, columns=64, block_M=32)
    wanted = getattr(elementary, function)(x)
    assert np.array_equal(out.view(np.int32), wanted.view(np.int32))


def test_exact_dot_refuses_a_bound_that_does_not_hold() -> None:
    a = np.full((1, 1 << 10), 32639, np.int16)
    with pytest.raises(OverflowError, match="int32"):
        exact_dot.exact_dot(a, np.full((1, 1 << 10), -128, np.int8))


def test_every_device_was_tried() -> None:
    assert "cpu" in DEVICES
