"""Properties of the MXFP4 to FP8 reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge.formats import e2m1, e4m3, e8m0, mx
from kernelforge.ops.fp4_to_fp8 import reference as ref
from kernelforge.ops.mxfp4_gemm import reference as gemm
from kernelforge.proofs import fp4_to_fp8 as proof


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view({4: np.uint32, 2: np.uint16}[x.dtype.itemsize])


def test_the_shift_ranges_of_the_reference_are_the_proved_ones():
    for code in range(1, 8):
        assert ref.LOWEST_SHIFT[code] == proof.LOWEST_SHIFT[code]
        assert ref.HIGHEST_SHIFT[code] == proof.HIGHEST_SHIFT[code]


def two_blocks(code_a: int, scale_a: int, code_b: int, scale_b: int, group: tuple[int, int]):
    """One group: a block of one code and zeros, and another elsewhere in the group."""
    rows = group[0]
    codes = np.zeros((rows, 128), np.uint8)
    scale = np.full((rows, 4), 127, np.uint8)
    codes[0, 7] = code_a
    scale[0, 0] = scale_a
    codes[-1, 127] = code_b
    scale[-1, 3] = scale_b
    return e2m1.pack(codes), scale


@pytest.mark.parametrize("group", [(1, 128), (128, 128)])
@pytest.mark.parametrize(("small", "large"), list(itertools.product(range(1, 8), range(1, 8))))
def test_each_pair_of_magnitudes_converts_exactly_up_to_its_threshold_and_not_beyond(group, small, large):
    spread = int(ref.HIGHEST_SHIFT[large] - ref.LOWEST_SHIFT[small])
    for low in (80, 150 - spread, 189 - spread):
        packed, scale = two_blocks(small, low, large | 8, low + spread, group)
        converted = ref.fp4_to_fp8(packed, scale, group)
        np.testing.assert_array_equal(
            bits(ref.dequantize_fp8(converted, group)), bits(mx.dequantize_mxfp4(packed, scale))
        )
        packed, scale = two_blocks(small, low, large | 8, low + spread + 1, group)
        with pytest.raises(ref.LosslessError, match=r"group \(0, 0\)"):
            ref.fp4_to_fp8(packed, scale, group)


@pytest.mark.parametrize("group", [(1, 128), (128, 128)])
def test_blocks_of_all_values_convert_up_to_a_ratio_of_two_to_the_fourteenth(group):
    all_values = np.resize(np.arange(16, dtype=np.uint8), (group[0], 128))
    scale = np.full((group[0], 4), 120, np.uint8)
    scale[-1, 2] = 134
    packed = e2m1.pack(all_values)
    converted = ref.fp4_to_fp8(packed, scale, group)
    np.testing.assert_array_equal(bits(ref.dequantize_fp8(converted, group)), bits(mx.dequantize_mxfp4(packed, scale)))
    scale[-1, 2] = 135
    with pytest.raises(ref.LosslessError):
        ref.fp4_to_fp8(packed, scale, group)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 130),
    blocks=st.integers(1, 9),
    span=st.integers(0, 8),
    group=st.sampled_from([(1, 128), (128, 128)]),
)
def test_narrow_groups_always_convert_exactly_partial_groups_too(seed, rows, blocks, span, group):
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (rows, 16 * blocks)).astype(np.uint8)
    base = rng.integers(77, 191 - span)
    scale = (base + rng.integers(0, span + 1, (rows, blocks))).astype(np.uint8)
    scale[rng.random(scale.shape) < 0.05] = 255
    scale[rng.random(scale.shape) < 0.05] = rng.integers(0, 77)
    converted = ref.fp4_to_fp8(packed, scale, group)
    assert converted.scale.shape == (-(-rows // group[0]), -(-blocks // 4))
    np.testing.assert_array_equal(bits(ref.dequantize_fp8(converted, group)), bits(mx.dequantize_mxfp4(packed, scale)))
    assert not (converted.codes == 0x80).any()
    assert (np.frexp(converted.scale)[0] == 0.5).all(), "group scales are powers of two"
    assert ((converted.scale >= 2.0**-50) & (converted.scale <= 2.0**63)).all(), "and the contract reads them all"


def test_equal_scales_keep_the_values_as_codes():
    packed = e2m1.pack(np.resize(np.arange(16, dtype=np.uint8), (2, 128)))
    converted = ref.fp4_to_fp8(packed, np.full((2, 4), 130, np.uint8))
    np.testing.assert_array_equal(e4m3.decode(converted.codes), e2m1.decode(e2m1.unpack(packed)))
    assert (converted.scale == 8).all()


def test_zero_groups_have_scale_one_and_scales_above_the_read_range_are_refused():
    zero = np.zeros((1, 64), np.uint8)
    converted = ref.fp4_to_fp8(zero, np.array([[0, 5, 127, 190]], np.uint8))
    assert converted.scale.tolist() == [[1.0]]
    assert not converted.codes.any()
    with pytest.raises(ref.LosslessError):
        ref.fp4_to_fp8(zero, np.array([[191, 127, 127, 127]], np.uint8))
    rounded = ref.fp4_to_fp8(zero, np.array([[191, 127, 127, 127]], np.uint8), on_loss="round")
    assert (rounded.codes[0, :32] == e4m3.NAN).all()
    assert not rounded.codes[0, 32:].any()


def test_the_error_names_the_first_group_that_fails():
    packed = e2m1.pack(np.full((3, 384), 7, np.uint8))
    scale = np.full((3, 12), 127, np.uint8)
    scale[1, 9] = 160
    with pytest.raises(ref.LosslessError, match=r"group \(1, 2\) of 1 x 128"):
        ref.fp4_to_fp8(packed, scale)
    with pytest.raises(ref.LosslessError, match=r"group \(0, 2\) of 128 x 128"):
        ref.fp4_to_fp8(packed, scale, (128, 128))


def test_rounding_keeps_large_values_exact_and_small_ones_within_half_a_step():
    rng = np.random.default_rng(4)
    packed = rng.integers(0, 256, (16, 256)).astype(np.uint8)
    scale = rng.integers(100, 150, (16, 16)).astype(np.uint8)
    converted = ref.fp4_to_fp8(packed, scale, on_loss="round")
    exact = mx.dequantize_mxfp4(packed, scale).astype(np.float64)
    step = np.repeat(converted.scale, 128, axis=1).astype(np.float64) * 2.0**-9
    error = np.abs(ref.dequantize_fp8(converted) - exact)
    assert (error <= step / 2).all()
    assert (error[np.abs(exact) >= step * 16] == 0).all()
    assert error.any(), "some group of this input cannot be exact"


def test_bad_arguments_of_fp4_to_fp8_are_named():
    packed, scale = np.zeros((1, 64), np.uint8), np.zeros((1, 4), np.uint8)
    with pytest.raises(ValueError, match="group is"):
        ref.fp4_to_fp8(packed, scale, (1, 64))
    with pytest.raises(ValueError, match="on_loss is"):
        ref.fp4_to_fp8(packed, scale, on_loss="ignore")


def test_a_converted_operand_gives_the_same_product_bits():
    """W4A4 with A as FP4, and the same A as FP8 under group scales: equal values, exact blocks, so equal bits."""
    rng = np.random.default_rng(5)
    a = rng.integers(0, 256, (6, 192)).astype(np.uint8)
    a_scale = rng.integers(120, 128, (6, 12)).astype(np.uint8)
    w, w_scale = mx.quantize_mxfp4(rng.standard_normal((9, 384)).astype(np.float32))
    converted = ref.fp4_to_fp8(a, a_scale)
    np.testing.assert_array_equal(
        bits(gemm.mxfp4_gemm(converted.codes, converted.scale, w, w_scale, "e4m3_f32", "float32")),
        bits(gemm.mxfp4_gemm(a, a_scale, w, w_scale, "e2m1", "float32")),
    )


def test_every_e2m1_value_at_every_shift_in_range_is_an_e4m3_value_and_at_none_outside():
    """The thresholds once more, by enumeration of E4M3."""
    values = set(e4m3.decode(np.arange(0x7F, dtype=np.uint8)).astype(np.float64))
    for code in range(1, 8):
        held = [d for d in range(-254, 255) if float(np.ldexp(np.float64(e2m1.decode(code)), d)) in values]
        assert held == list(range(ref.LOWEST_SHIFT[code], ref.HIGHEST_SHIFT[code] + 1))
    assert e8m0.decode(np.uint8(254)) == 2.0**127
