"""MX quantizers: scale rules, rounding, zero and non-finite blocks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kernelforge.formats import e2m1, e4m3, e8m0, mx

ELEMENTS = {"e2m1": (e2m1, ml_dtypes.float4_e2m1fn), "e4m3": (e4m3, ml_dtypes.float8_e4m3fn)}
RULES = ("ceil", "floor")
finite = hnp.arrays(np.float32, (2, 64), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def block_amax(x: np.ndarray) -> np.ndarray:
    return np.abs(mx.blocks(mx.flush(x))).max(-1).astype(np.float64)


@pytest.mark.parametrize("element", ELEMENTS)
@settings(deadline=None)
@given(x=finite)
def test_ceil_is_the_least_power_of_two_under_which_nothing_saturates(element, x):
    module = ELEMENTS[element][0]
    _, scale = mx.quantize(x, element, "ceil")
    amax, value = block_amax(x), e8m0.decode(scale)
    zero = amax == 0
    assert (scale[zero] == 0).all()
    assert (amax <= module.MAX * value)[~zero].all()
    assert (amax > module.MAX * value / 2)[~zero].all()


@pytest.mark.parametrize("element", ELEMENTS)
@settings(deadline=None)
@given(x=finite)
def test_floor_is_the_ocp_formula(element, x):
    module = ELEMENTS[element][0]
    _, scale = mx.quantize(x, element, "floor")
    amax = block_amax(x)
    some = amax > 0
    expected = np.floor(np.log2(np.where(some, amax, 1))) - module.MAX_EXPONENT
    # log2 in float64 may round up to the next integer just below a power of two.
    expected -= np.where(np.ldexp(1.0, (expected + module.MAX_EXPONENT).astype(int)) > amax, 1, 0) * some
    np.testing.assert_array_equal(scale[some].astype(int) - 127, expected[some])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("element", ELEMENTS)
@settings(deadline=None)
@given(x=finite)
def test_elements_are_rounded_to_nearest_even_and_saturate(element, rule, x):
    module, dtype = ELEMENTS[element]
    codes, scale = mx.quantize(x, element, rule)
    exact = mx.blocks(mx.flush(x)).astype(np.float64) / e8m0.decode(scale)[..., None]
    clipped = np.clip(exact, -module.MAX, module.MAX)
    # float64 -> float32 would round twice: only compare where the scaled value is a float32.
    kept = clipped == clipped.astype(np.float32)
    expected = module.decode(clipped.astype(np.float32).astype(dtype).view(np.uint8))
    np.testing.assert_array_equal(module.decode(mx.blocks(codes))[kept], expected[kept])


@pytest.mark.parametrize("element", ELEMENTS)
def test_scale_rules_at_the_edge_of_saturation(element):
    module = ELEMENTS[element][0]
    for exponent in (-30, 0, 30):
        edge = np.float32(np.ldexp(module.MAX, exponent))
        for amax, ceil_shift in ((edge, 0), (np.nextafter(edge, np.float32(np.inf)), 1)):
            x = np.zeros(32, np.float32)
            x[5] = -amax
            assert mx.quantize(x, element, "ceil")[1][0] == 127 + exponent + ceil_shift
            codes, scale = mx.quantize(x, element, "floor")
            assert scale[0] == 127 + exponent
            assert module.decode(codes)[5] == -module.MAX, "floor saturates"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_zero_tiny_and_non_finite_blocks(element, rule):
    x = np.ones((6, 32), np.float32)
    x[0] = 0
    x[1] = -np.nextafter(np.float32(2.0**-50), np.float32(0))
    x[2, 7] = np.nan
    x[3, 31] = -np.inf
    x[4] = 2.0**-50
    codes, scale = mx.quantize(x, element, rule)
    assert scale[:4, 0].tolist() == [0, 0, 255, 255]
    assert (codes[:4] == 0).all()
    assert scale[4, 0] > 0
    assert (codes[4:] != 0).all(), "2^-50 itself is read"


@pytest.mark.parametrize("element", ELEMENTS)
def test_negative_values_that_round_to_zero_are_written_as_plus_zero(element):
    x = np.full(32, -1e-6, np.float32)
    x[0] = 100.0
    codes, _ = mx.quantize(x, element)
    assert codes[1:].tolist() == [0] * 31


@pytest.mark.parametrize("element", ELEMENTS)
def test_largest_floats_do_not_overflow(element):
    x = np.full(32, np.finfo(np.float32).max, np.float32)
    for rule in RULES:
        codes, scale = mx.quantize(x, element, rule)
        value = ELEMENTS[element][0].decode(codes).astype(np.float64) * e8m0.decode(scale)[0]
        assert (np.abs(value - x) <= x * (0.26 if element == "e2m1" else 0.13)).all()


@pytest.mark.parametrize("element", ELEMENTS)
def test_quantizing_what_was_dequantized_changes_nothing(element):
    rng = np.random.default_rng(3)
    x = np.ldexp(rng.standard_normal((8, 256)), rng.integers(-20, 20, (8, 256))).astype(np.float32)
    codes, scale = mx.quantize(x, element)
    values = mx.dequantize(codes, scale, element)
    again = mx.dequantize(*mx.quantize(values, element), element)
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("element", ELEMENTS)
def test_dequantizing_reads_scales_by_the_contract(element):
    count = 16 if element == "e2m1" else 256
    codes = np.resize(np.arange(count, dtype=np.uint8), (256, count if count >= 32 else 32))
    scale = np.repeat(np.arange(256, dtype=np.uint8)[:, None], codes.shape[1] // 32, 1)
    values = mx.dequantize(codes, scale, element)
    with np.errstate(invalid="ignore"):
        exact = ELEMENTS[element][0].decode(codes).astype(np.float64) * e8m0.decode(scale[:, :1])
        expected = np.where(scale[:, :1] > 190, exact * np.inf, exact)
    expected[:77] = np.where(np.isnan(exact[:77]), np.nan, 0)
    np.testing.assert_array_equal(values.astype(np.float64), expected)
    assert not np.signbit(values[values == 0]).any()


def test_mxfp4_and_mxfp8_shapes_and_bad_input():
    x = np.ones((2, 3, 64), np.float32)
    packed, scale = mx.quantize_mxfp4(x)
    assert packed.shape == (2, 3, 32)
    assert scale.shape == (2, 3, 2)
    np.testing.assert_array_equal(mx.dequantize_mxfp4(packed, scale), x)
    np.testing.assert_array_equal(mx.dequantize_mxfp8(*mx.quantize_mxfp8(x)), x)
    with pytest.raises(ValueError, match="multiple of 32"):
        mx.quantize_mxfp4(np.ones((2, 48), np.float32))
    with pytest.raises(ValueError, match="scale_rule"):
        mx.quantize_mxfp4(x, "round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one byte per 32"):
        mx.dequantize_mxfp4(packed, scale[..., :1])
