"""R(n): one written order of additions, in NumPy and in the macros, for any tile width."""

from __future__ import annotations

import lowering_harness as harness
import numerics_kernels as kernels
import numpy as np
import pytest

from kernelforge.numerics import elementary
from kernelforge.numerics.row_sum import row_sum

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 48, 64, 70, 100, 512)


def _rows(count: int, length: int, seed: int = 0) -> np.ndarray:
    """Values of very different sizes, so that another order of additions shows; first rows all -0, +-Inf, NaN."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, length)) * 2.0 ** generator.integers(-30, 30, (count, length))
    x = x.astype(np.float32)
    x[0] = -0.0
    x[1, 0] = np.inf
    x[2, 0], x[2, -1] = np.inf, -np.inf
    x[3, length // 2] = np.nan
    return x


def _one_row(x: list[np.float32]) -> np.float32:
    """The definition, one addition at a time."""
    if len(x) == 4:
        total = (x[0] + x[1]) + (x[2] + x[3])
    else:
        lanes = [np.float32(0)] * 32
        for index, element in enumerate(x):
            lanes[index % 32] = lanes[index % 32] + element
        for width in (16, 8, 4, 2, 1):
            for lane in range(width):
                lanes[lane] = lanes[lane] + lanes[lane + width]
        total = lanes[0]
    if np.isnan(total):
        return np.uint32(0x7FC00000).view(np.float32)
    return np.float32(0) if total == 0 else total


def _same_bits(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("length", LENGTHS)
def test_numpy_adds_in_the_written_order(length):
    x = _rows(64, length)
    with np.errstate(all="ignore"):
        want = np.array([_one_row(list(row)) for row in x], np.float32)
    _same_bits(row_sum(x), want)


def test_the_rows_of_this_test_tell_orders_apart():
    x = _rows(64, 100)[4:]
    assert (row_sum(x) != row_sum(np.ascontiguousarray(x[:, ::-1]))).any()
    assert (row_sum(x) != x.sum(-1)).any()
    four = _rows(64, 4)[4:]
    assert (row_sum(four) != (four[:, 0] + four[:, 2]) + (four[:, 1] + four[:, 3])).any()


def test_an_empty_row_sums_to_zero_and_leading_axes_are_kept():
    _same_bits(row_sum(np.zeros((2, 3, 0), np.float32)), np.zeros((2, 3), np.float32))
    x = _rows(60, 48)
    _same_bits(row_sum(x.reshape(3, 4, 5, 48)).reshape(-1), row_sum(x))
    assert row_sum(x[0]).shape == ()


def test_other_dtypes_and_scalars_are_refused():
    with pytest.raises(TypeError, match="row_sum: x is float64; it must be a float32 array"):
        row_sum(np.zeros(3))
    with pytest.raises(ValueError, match="it must have a last axis"):
        row_sum(np.array(1, np.float32))


@pytest.mark.parametrize("length", LENGTHS)
def test_the_macro_has_numpys_bits_in_c(tmp_path, length):
    x = _rows(64, length, 1)
    y = np.empty(64, np.float32)
    harness.run_c(kernels.row_sums(64, length), tmp_path, x=x, y=y)
    _same_bits(y, row_sum(x))


@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_bits_do_not_depend_on_the_tile_width(tmp_path, width):
    x = _rows(64, 512, 2)
    y = np.empty(64, np.float32)
    harness.run_c(kernels.row_sums_by_tiles(64, 512, width), tmp_path, x=x, y=y)
    _same_bits(y, row_sum(x))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 8, 31, 32])
def test_sums_of_scalars_and_reciprocals_have_numpys_bits_in_loops(tmp_path, length):
    x = np.random.default_rng(3).uniform(0.01, 1, (64, length)).astype(np.float32)
    y = np.empty_like(x)
    harness.run_c(kernels.normalize_rounds(64, 5, columns=length), tmp_path, x=x, y=y)
    for _ in range(5):
        x = x * elementary.recip_positive(row_sum(x))[:, None]
    _same_bits(y, x)


@pytest.mark.skipif(not harness.HAS_NVCC, reason="nvcc is not installed")
@pytest.mark.parametrize(
    "kernel", [kernels.row_sums(64, 70), kernels.row_sums(64, 4), kernels.row_sums_by_tiles(64, 256, 64)]
)
def test_the_macros_compile_for_cuda(tmp_path, kernel):
    ptx = harness.cuda_ptx(kernel, tmp_path)
    assert "add.rn.f32" in ptx or "add.f32" in ptx
    assert "fma" not in ptx


@pytest.mark.parametrize(
    "kernel", [kernels.row_sums(64, 70), kernels.row_sums(64, 4), kernels.row_sums_by_tiles(64, 256, 64)]
)
def test_the_macros_lower_for_cuda_with_a_barrier_between_the_halves(kernel):
    source = harness.cuda_source(kernel)
    sums = source.count("lanes[")
    assert source.count("__syncthreads()") >= (6 if sums else 1), source
