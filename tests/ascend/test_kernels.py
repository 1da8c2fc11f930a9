"""Portable kernels, lowered to AscendC and executed: NumPy's bits, under every schedule, with every checker on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import ascend_kernels as kernels
import ascend_pass_kernels as small
from ascend_harness import assert_bits, executable, lowered

rng = np.random.default_rng(7)


def int8(*shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape, dtype=np.int8)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.int32) @ b.astype(np.int32).T


@pytest.mark.parametrize(
    ("M", "N", "K"), [(128, 128, 256), (100, 128, 256), (1, 96, 256), (130, 200, 224), (64, 128, 230)]
)
def test_scaled_gemm_with_tails_in_every_dimension(M, N, K):
    bk, chunks = 64, -(-K // 64)
    a, b = int8(M, K), int8(N, K)
    sa, sb = rng.standard_normal((M, chunks), np.float32), rng.standard_normal((N, chunks), np.float32)
    want = np.zeros((M, N), np.float32)
    for k in range(chunks):
        part = slice(k * bk, (k + 1) * bk)
        want = want + dot(a[:, part], b[:, part]).astype(np.float32) * (sa[:, k : k + 1] * sb[:, k][None])
    assert_bits(executable(kernels.scaled_gemm, N, K, 64, 64, bk), [a, b, sa, sb], [want])


def test_one_compiled_kernel_serves_every_leading_extent():
    kernel = executable(kernels.scaled_gemm, 96, 256, 64, 64, 64)
    for M in (1, 63, 64, 65, 200):
        a, b = int8(M, 256), int8(96, 256)
        sa, sb = np.ones((M, 4), np.float32), np.ones((96, 4), np.float32)
        want = sum(dot(a[:, q : q + 64], b[:, q : q + 64]).astype(np.float32) for q in range(0, 256, 64))
        assert_bits(kernel, [a, b, sa, sb], [want])


@pytest.mark.parametrize("tiles", [(32, 32, 32), (64, 128, 64), (128, 64, 128)])
def test_bits_do_not_depend_on_tile_size(tiles):
    a, b = int8(128, 256), int8(128, 256)
    assert_bits(executable(kernels.accumulating_gemm, 128, 128, 256, *tiles, "fill"), [a, b], [dot(a, b)])


@pytest.mark.parametrize("clear", ["fill", "first"])
def test_sums_of_a_loop_stay_in_the_cube_unit(clear):
    source = lowered(kernels.accumulating_gemm, 64, 64, 256, 64, 64, 64, clear).source
    gemm, copy = source.index("ascend_gemm_l1"), source.index("asc_copy_l0c2ub")
    assert "}" in source[gemm:copy], "the copy out of L0C comes after the loop"
    a, b = int8(64, 256), int8(64, 256)
    assert_bits(executable(kernels.accumulating_gemm, 64, 64, 256, 64, 64, 64, clear), [a, b], [dot(a, b)])


def test_sums_that_vector_code_changes_between_gemms():
    a, b = int8(32, 128), int8(64, 128)
    want = np.zeros((32, 64), np.int32)
    for k in range(0, 128, 32):
        want = (want + dot(a[:, k : k + 32], b[:, k : k + 32])) * 2
    assert_bits(executable(kernels.interrupted_gemm, 32, 64, 128, 32), [a, b], [want])


@pytest.mark.parametrize("transpose_b", [True, False])
@pytest.mark.parametrize("transpose_a", [True, False])
def test_operands_in_either_orientation(transpose_a, transpose_b):
    a, b = int8(32, 96), int8(64, 96)
    stored_a = np.ascontiguousarray(a.T) if transpose_a else a
    stored_b = b if transpose_b else np.ascontiguousarray(b.T)
    assert_bits(
        executable(kernels.oriented_gemm, 32, 64, 96, transpose_a, transpose_b), [stored_a, stored_b], [dot(a, b)]
    )


def test_gemm_on_columns_of_a_tile():
    a, b = int8(32, 128), int8(64, 128)
    assert_bits(executable(kernels.columns_gemm, 32, 64, 128, 32), [a, b], [dot(a, b)])


def test_sums_used_across_rows_leave_the_second_vector_core_idle():
    assert "if (asc_get_sub_block_id() == 0)" in lowered(kernels.column_sums_gemm, 32, 64, 64).source
    a, b = int8(32, 64), int8(64, 64)
    assert_bits(executable(kernels.column_sums_gemm, 32, 64, 64), [a, b], [dot(a, b).sum(0, dtype=np.int32)])


def test_row_numbers_are_the_tile_s_on_both_vector_cores():
    a, b = int8(64, 64), int8(64, 64)
    i, j = np.indices((64, 64), np.int32)
    want = np.where(j <= i, dot(a, b) + 1000 * i, np.full((64, 64), 77)).astype(np.int32)
    assert_bits(executable(kernels.guarded_rows_gemm, 64, 64, 64), [a, b], [want])


@pytest.mark.parametrize("R", [64, 50])
def test_row_sums_in_the_written_order(R):
    x = rng.standard_normal((R, 160), np.float32)
    part = np.zeros((R, 32), np.float32)
    for q in range(5):
        part = part + x[:, q * 32 : (q + 1) * 32]
    part = part[:, :16] + part[:, 16:]
    part = part[:, :8] + part[:, 8:]
    part = part[:, :4] + part[:, 4:]
    part = part[:, :2] + part[:, 2:]
    assert_bits(executable(kernels.row_sums, R, 160, 16), [x], [part[:, 0] + part[:, 1]])


def test_integer_atomics_count_every_element():
    x = rng.integers(0, 64, (6, 256), dtype=np.int32)
    want = np.stack([np.bincount(row, minlength=64) for row in x]).astype(np.int32)
    assert_bits(executable(kernels.histogram, 6, 256), [x], [want])


def test_three_grid_axes_sixteen_bit_tiles_and_a_reduction():
    x = rng.integers(0x3000, 0x4800, (3, 20, 160), dtype=np.uint16)
    bits = ((x.astype(np.uint32) << 16).view(np.float32) * np.float32(3)).view(np.uint32)
    y = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    assert_bits(executable(kernels.bits_of_three_axes, 3, 20, 160), [x], [y, x.max(2).astype(np.int32)])


def test_a_tile_read_by_the_cube_unit_and_by_vector_code():
    a, b = int8(32, 64), int8(64, 64)
    want = dot(a, b) + a.sum(1, dtype=np.int32, keepdims=True)
    assert_bits(executable(kernels.shared_operand_gemm, 32, 64, 64), [a, b], [want])


def test_sums_that_restart_under_a_condition():
    a, b = int8(32, 160), int8(32, 160)
    parts = [dot(a[:, k : k + 32], b[:, k : k + 32]) for k in range(0, 160, 32)]
    want, running = np.zeros((32, 32), np.int32), np.zeros((32, 32), np.int32)
    for k, part in enumerate(parts):
        running = part if k % 2 == 0 else running + part
        want = want + running
    assert_bits(executable(kernels.restarting_gemm, 32, 32, 160, 32), [a, b], [want])


def test_operands_in_tiles_of_three_dimensions():
    a, b = int8(32, 128), int8(48, 128)
    assert_bits(executable(kernels.staged_gemm, 32, 48, 128, 64), [a, b], [dot(a, b)])


@pytest.mark.parametrize("M", [1, 16, 50])
def test_staged_rows_end_at_the_tensor_and_at_a_number_read(M):
    x, bias, scale = (rng.integers(-99, 99, shape, dtype=np.int32) for shape in ((M, 48), 48, 3))
    for last in {0, 1, M - 1, M}:
        want = np.full((M, 48), 77, np.int32)
        want[:last] = x[:last] * 2 + bias + scale[np.minimum(np.arange(48) // 8, 2)]
        inputs = [x, bias, scale, np.array([last], np.int32)]
        assert_bits(executable(small.direct_rows), inputs, [want])


@pytest.mark.parametrize("gap", [False, True])
def test_staged_boxes_of_three_dimensions(gap):
    x = rng.integers(-99, 99, (21, 4, 64), dtype=np.int32)
    used = 60 if gap else 64
    total, y = np.full((21, 64), 77, np.int32), np.full((21, 4, 64), 77, np.int32)
    total[:, :used], y[..., :used] = x.sum(1)[:, :used], x[..., :used] + 1
    kernel = executable(small.streams, 4, 64, gap)
    assert_bits(kernel, [x.reshape(21, 256)], [total, y.reshape(21, 256)])


@pytest.mark.parametrize("turned", [False, True])
def test_staged_tiles_of_both_vector_cores(turned):
    """Three tiles of 64 KiB, which fit where their rows are halved."""
    a, b, d = int8(128, 64), int8(128, 64), rng.integers(-99, 99, (128, 128), dtype=np.int32)
    want = dot(a, b) + (d.T if turned else d)
    assert_bits(executable(kernels.biased_gemm, 128, 128, 64, turned), [a, b, d], [want])
