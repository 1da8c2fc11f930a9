"""Properties of the MXFP4 GEMM reference."""

from __future__ import annotations

import numpy as np
import pytest

from kernelforge.formats import bf16, e4m3
from kernelforge.numerics.block_accumulate import mx_block_accumulate
from kernelforge.ops.mxfp4_gemm import reference as ref


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view({4: np.uint32, 2: np.uint16}[x.dtype.itemsize])


def operands(a_format: str, m: int, n: int, k: int, seed: int = 0, heavy: bool = False):
    """a, a_scale, the values they stand for; w, w_scale, their values."""
    rng = np.random.default_rng(seed)
    draw = (lambda shape: rng.standard_t(3, shape)) if heavy else rng.standard_normal
    x, y = draw((m, k)).astype(np.float32), draw((n, k)).astype(np.float32)
    w, w_scale = ref.quantize_mxfp4(y)
    if a_format == "e2m1":
        a, a_scale = ref.quantize_mxfp4(x)
        values = ref.dequantize_mxfp4(a, a_scale)
    elif a_format == "e4m3_e8m0":
        a, a_scale = ref.quantize_mxfp8(x)
        values = ref.dequantize_mxfp8(a, a_scale)
    elif a_format == "e4m3_f32":
        group_amax = np.stack([np.abs(x[:, i : i + 128]).max(1) for i in range(0, k, 128)], 1)
        a_scale = (group_amax / 448).astype(np.float32)
        spread = np.repeat(a_scale, 128, axis=1)[:, :k]
        a = e4m3.encode(x / spread)
        values = e4m3.decode(a).astype(np.float64) * spread
    else:
        a, a_scale = bf16.encode(x), None
        values = bf16.decode(a)
    return (
        a,
        a_scale,
        values.astype(np.float64),
        w,
        w_scale,
        ref.dequantize_mxfp4(w, w_scale).astype(np.float64),
    )


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("a_format", ref.A_FORMATS)
def test_float32_results_are_closer_to_float64_than_fp32_rounding_noise(a_format, heavy):
    a, a_scale, x, w, w_scale, y = operands(a_format, 32, 48, 1024, heavy=heavy)
    exact = x @ y.T
    out = ref.mxfp4_gemm(a, a_scale, w, w_scale, a_format, "float32")
    error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert error < 3e-5
    customary = x.astype(np.float32).astype(np.float64)
    to_bf16 = bf16.decode(bf16.encode(customary.astype(np.float32)))
    accumulated = to_bf16 @ bf16.decode(bf16.encode(y.astype(np.float32))).T
    rounded = bf16.decode(ref.mxfp4_gemm(a, a_scale, w, w_scale, a_format))
    customary_error = np.linalg.norm(bf16.decode(bf16.encode(accumulated)) - exact)
    assert np.linalg.norm(rounded - exact) <= customary_error * 1.001 + 1e-12


@pytest.mark.parametrize("a_format", ref.A_FORMATS)
def test_results_do_not_depend_on_the_batch_or_on_how_k_is_fed(a_format):
    a, a_scale, _, w, w_scale, _ = operands(a_format, 9, 20, 512)
    whole = ref.mxfp4_gemm(a, a_scale, w, w_scale, a_format, "float32")
    order = np.random.default_rng(1).permutation(9)
    permuted = ref.mxfp4_gemm(a[order], None if a_scale is None else a_scale[order], w, w_scale, a_format, "float32")
    np.testing.assert_array_equal(bits(permuted), bits(whole[order]))
    # K in two ranges through the running sums.
    per_byte = 2 if a_format == "e2m1" else 1
    per_scale = 128 if a_format == "e4m3_f32" else 32
    acc = np.zeros((9, 20), np.float32)
    for start, stop in ((0, 128), (128, 512)):
        scale = None if a_scale is None else a_scale[:, start // per_scale : stop // per_scale]
        acc = mx_block_accumulate(
            acc,
            a[:, start // per_byte : stop // per_byte],
            scale,
            w[:, start // 2 : stop // 2],
            w_scale[:, start // 32 : stop // 32],
            a_format,
        )
    np.testing.assert_array_equal(bits(ref.round_output(acc, "float32")), bits(whole))


@pytest.mark.parametrize("a_format", ref.A_FORMATS)
def test_grouped_is_one_product_per_expert_and_empty_experts_are_skipped(a_format):
    a, a_scale, _, _, _, _ = operands(a_format, 10, 1, 96)
    w, w_scale = ref.quantize_mxfp4(np.random.default_rng(2).standard_normal((4, 7, 96)).astype(np.float32))
    offsets = np.array([0, 3, 3, 10, 10], np.int32)
    out = ref.grouped_mxfp4_gemm(a, a_scale, w, w_scale, offsets, a_format)
    assert out.shape == (10, 7)
    assert out.dtype == np.uint16
    for row in range(10):
        expert = 0 if row < 3 else 2
        scale = None if a_scale is None else a_scale[row : row + 1]
        one = ref.mxfp4_gemm(a[row : row + 1], scale, w[expert], w_scale[expert], a_format)
        np.testing.assert_array_equal(out[row], one[0])
    for wrong in ([0, 3, 3, 10], [0, 4, 3, 10, 10], [1, 3, 3, 10, 10], [0, 3, 3, 9, 9]):
        with pytest.raises(ValueError, match="group_offsets"):
            ref.grouped_mxfp4_gemm(a, a_scale, w, w_scale, np.array(wrong, np.int32), a_format)


def test_no_rows_give_an_empty_result():
    w, w_scale = ref.quantize_mxfp4(np.ones((5, 64), np.float32))
    empty = ref.mxfp4_gemm(np.zeros((0, 64), np.uint16), None, w, w_scale, "bf16")
    assert empty.shape == (0, 5)


def test_wrong_formats_are_named():
    w, w_scale = ref.quantize_mxfp4(np.ones((5, 64), np.float32))
    with pytest.raises(ValueError, match="a_format is 'fp8'"):
        ref.mxfp4_gemm(np.zeros((1, 64), np.uint8), w_scale[:1], w, w_scale, "fp8")
    with pytest.raises(ValueError, match="a_scale is missing"):
        ref.mxfp4_gemm(np.zeros((1, 64), np.uint8), None, w, w_scale, "e4m3_e8m0")
    with pytest.raises(ValueError, match="out_dtype is 'int8'"):
        ref.mxfp4_gemm(np.zeros((1, 64), np.uint16), None, w, w_scale, "bf16", "int8")
