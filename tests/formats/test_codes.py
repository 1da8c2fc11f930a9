"""Every code and every rounding tie of the small formats, against ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from kernelforge.formats import bf16, e2m1, e4m3, e8m0

FORMATS = {"e2m1": (e2m1, ml_dtypes.float4_e2m1fn, 8), "e4m3": (e4m3, ml_dtypes.float8_e4m3fn, 0x7F)}


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_decodes_like_ml_dtypes(name):
    module, dtype, count = FORMATS[name]
    codes = np.arange(2 * (count if name == "e2m1" else 128), dtype=np.uint8)
    expected = codes.view(dtype).astype(np.float32)
    nan = np.isnan(expected)
    decoded = module.decode(codes)
    np.testing.assert_array_equal(np.isnan(decoded), nan)
    np.testing.assert_array_equal(decoded[~nan], expected[~nan])
    assert not np.signbit(decoded[decoded == 0]).any(), "-0 reads as +0"


def test_doubled_e2m1_is_twice_the_value_exactly():
    np.testing.assert_array_equal(e2m1.doubled(np.arange(16)), 2 * e2m1.decode(np.arange(16)))


@pytest.mark.parametrize("name", FORMATS)
def test_every_value_and_tie_and_their_neighbours_round_like_ml_dtypes(name):
    module, dtype, count = FORMATS[name]
    positive = module.decode(np.arange(count, dtype=np.uint8)).astype(np.float64)
    ties = (positive[:-1] + positive[1:]) / 2
    points = np.concatenate([positive, ties]).astype(np.float32)
    assert (points == np.concatenate([positive, ties])).all(), "ties are exact in float32"
    points = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))])
    points = points[points <= positive[-1]]
    points = np.concatenate([points, -points])
    np.testing.assert_array_equal(module.encode(points), points.astype(dtype).view(np.uint8))


@pytest.mark.parametrize("name", FORMATS)
def test_random_values_round_like_ml_dtypes(name):
    module, dtype, _ = FORMATS[name]
    rng = np.random.default_rng(1)
    x = np.ldexp(rng.standard_normal(200_000), rng.integers(-14, 9, 200_000)).astype(np.float32)
    x = x[np.abs(x) <= module.MAX]
    np.testing.assert_array_equal(module.encode(x), x.astype(dtype).view(np.uint8))


@pytest.mark.parametrize("name", FORMATS)
def test_encoding_saturates(name):
    module, _, count = FORMATS[name]
    sign = np.uint8(8 if name == "e2m1" else 0x80)
    huge = np.array([module.MAX, module.MAX * 1.01, module.MAX * 4, 3e38, np.inf], np.float32)
    np.testing.assert_array_equal(module.encode(huge), np.full(5, count - 1, np.uint8))
    np.testing.assert_array_equal(module.encode(-huge), np.full(5, (count - 1) | sign, np.uint8))


def test_nan_encodes_as_nan_in_e4m3_and_is_refused_by_e2m1():
    assert e4m3.encode(np.array([np.nan, -np.nan], np.float32)).tolist()[0] & 0x7F == e4m3.NAN
    assert e4m3.is_nan(np.arange(256, dtype=np.uint8)).nonzero()[0].tolist() == [0x7F, 0xFF]
    with pytest.raises(ValueError, match="NaN"):
        e2m1.encode(np.array([1.0, np.nan], np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_encoding_a_decoded_code_gives_the_code(name):
    module, _, count = FORMATS[name]
    codes = np.arange(count, dtype=np.uint8)
    np.testing.assert_array_equal(module.encode(module.decode(codes)), codes)


def test_every_scale_byte_decodes_like_ml_dtypes():
    byte = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(e8m0.decode(byte), byte.view(ml_dtypes.float8_e8m0fnu).astype(np.float64))


def test_scales_outside_the_read_range_become_zero_and_infinity():
    byte = np.arange(256, dtype=np.uint8)
    read = e8m0.read_scale(byte)
    inside = (byte >= 77) & (byte <= 190)
    np.testing.assert_array_equal(read[inside], e8m0.decode(byte)[inside].astype(np.float32))
    assert (bits(read[:77]) == 0).all()
    assert np.isposinf(read[191:255]).all()
    assert bits(read[255:])[0] == 0x7FC00000
    assert read[77] == 2.0**-50
    assert read[190] == 2.0**63


def test_scale_exponents_round_trip_and_clamp():
    exponent = np.arange(-140, 141)
    np.testing.assert_array_equal(e8m0.decode(e8m0.encode(exponent)), np.ldexp(1.0, np.clip(exponent, -127, 127)))


def test_packing_puts_the_even_index_in_the_low_nibble_and_round_trips():
    assert e2m1.pack(np.array([1, 2, 15, 0], np.uint8)).tolist() == [0x21, 0x0F]
    every_byte = np.arange(256, dtype=np.uint8).reshape(2, 128)
    np.testing.assert_array_equal(e2m1.pack(e2m1.unpack(every_byte)), every_byte)
    with pytest.raises(ValueError, match="even"):
        e2m1.pack(np.zeros(3, np.uint8))


def test_every_bfloat16_decodes_like_ml_dtypes():
    code = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    np.testing.assert_array_equal(bits(bf16.decode(code)), bits(code.view(ml_dtypes.bfloat16).astype(np.float32)) | 0)


def test_every_bfloat16_tie_and_neighbour_rounds_like_ml_dtypes():
    code = np.arange(65536, dtype=np.uint32) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = (code | low).astype(np.uint32).view(np.float32)
        ok = ~np.isnan(x)
        np.testing.assert_array_equal(bf16.encode(x)[ok], x[ok].astype(ml_dtypes.bfloat16).view(np.uint16))
        assert (bf16.encode(x)[~ok] == 0x7FC0).all()


def test_binary16_rounds_like_numpy_but_for_the_one_nan_and_no_minus_zero():
    code = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    value = code.view(np.float16).astype(np.float32)
    encoded = bf16.encode_binary16(value)
    keep = ~np.isnan(value) & (code != 0x8000)
    np.testing.assert_array_equal(encoded[keep], code[keep])
    assert (encoded[np.isnan(value)] == 0x7E00).all()
    assert encoded[0x8000] == 0
    edge = np.array(
        [
            65519.99,
            65520.0,
            -65520.0,
            2.0**-25,
            np.nextafter(np.float32(2.0**-25), np.float32(1)),
            -(2.0**-26),
        ]
    )
    assert bf16.encode_binary16(edge.astype(np.float32)).tolist() == [0x7BFF, 0x7C00, 0xFC00, 0, 1, 0]


def test_canonical_outputs_have_one_nan_and_no_minus_zero():
    odd = np.array([0x80000000, 0xFFC00001, 0x7F800001, 0xFF800000, 0xBF800000], np.uint32).view(np.float32)
    assert bits(bf16.canonical(odd)).tolist() == [0, 0x7FC00000, 0x7FC00000, 0xFF800000, 0xBF800000]
