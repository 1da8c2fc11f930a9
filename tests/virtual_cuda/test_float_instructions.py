"""fp32, fp16 and bf16 arithmetic and every conversion, against NumPy, ml_dtypes and exact rationals."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from ptx_snippet import floats, one, same_floats, words

from kernelforge_cuda.virtual.launch import PtxError

RNG = np.random.default_rng(7)


def finite(count: int = 32) -> np.ndarray:
    return (RNG.standard_normal(count) * 2.0 ** RNG.integers(-20, 20, count)).astype(np.float32)


def flush(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.uint32)
    return np.where(bits & 0x7F800000, bits, bits & 0x80000000).astype(np.uint32).view(np.float32)


def directed(exact: Fraction, mode: str) -> np.float32:
    """`exact` to fp32 in one of PTX's rounding modes; the magnitudes here are far from the format's ends."""
    guess = np.float32(float(exact))
    while Fraction(float(guess)) > exact:
        guess = np.nextafter(guess, np.float32(-np.inf))
    while Fraction(float(np.nextafter(guess, np.float32(np.inf)))) <= exact:
        guess = np.nextafter(guess, np.float32(np.inf))
    below, above = guess, guess if Fraction(float(guess)) == exact else np.nextafter(guess, np.float32(np.inf))
    if mode == "rm":
        return below
    if mode == "rp":
        return above
    if mode == "rz":
        return below if exact >= 0 else above
    lower, upper = exact - Fraction(float(below)), Fraction(float(above)) - exact
    if lower == upper:
        return below if below.view(np.uint32) % 2 == 0 else above
    return below if lower < upper else above


@pytest.mark.parametrize(("opcode", "ufunc"), [("add", np.add), ("sub", np.subtract), ("mul", np.multiply)])
def test_ieee_arithmetic_with_and_without_flushing(opcode: str, ufunc: Any) -> None:
    for _ in range(20):
        a, b = floats(RNG), np.roll(floats(RNG), 7)
        with np.errstate(all="ignore"):
            same_floats(one(f"{opcode}.rn.f32 %z, %x0, %x1;", np.float32, a, b), ufunc(a, b))
            same_floats(one(f"{opcode}.ftz.f32 %z, %x0, %x1;", np.float32, a, b), flush(ufunc(flush(a), flush(b))))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_every_rounding_mode_rounds_once(mode: str) -> None:
    a, b, c = finite(), finite(), finite()
    exact = {
        "add": [Fraction(float(x)) + Fraction(float(y)) for x, y in zip(a, b, strict=True)],
        "sub": [Fraction(float(x)) - Fraction(float(y)) for x, y in zip(a, b, strict=True)],
        "mul": [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)],
    }
    for opcode, values in exact.items():
        expected = np.array([directed(v, mode) for v in values], np.float32)
        same_floats(one(f"{opcode}.{mode}.f32 %z, %x0, %x1;", np.float32, a, b), expected)
    fused = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    expected = np.array([directed(v, mode) for v in fused], np.float32)
    same_floats(one(f"fma.{mode}.f32 %z, %x0, %x1, %x2;", np.float32, a, b, c), expected)


def test_fma_rounds_once_where_two_roundings_differ() -> None:
    a = np.full(32, 1 + 2.0**-12, np.float32)
    c = -(a * a)
    result = one("fma.rn.f32 %z, %x0, %x1, %x2;", np.float32, a, a, c)
    np.testing.assert_array_equal(result, np.full(32, 2.0**-24, np.float32))


def test_minimum_and_maximum_order_zeros_and_drop_nan() -> None:
    a = np.array([0.0, -0.0, np.nan, 1.0, np.nan, -np.inf, 3.0, 2.0] * 4, np.float32)
    b = np.array([-0.0, 0.0, 1.0, np.nan, np.nan, np.inf, 2.0, 3.0] * 4, np.float32)
    low = np.array([-0.0, -0.0, 1, 1, np.nan, -np.inf, 2, 2] * 4, np.float32)
    high = np.array([0.0, 0.0, 1, 1, np.nan, np.inf, 3, 3] * 4, np.float32)
    same_floats(one("min.f32 %z, %x0, %x1;", np.float32, a, b), low)
    same_floats(one("max.f32 %z, %x0, %x1;", np.float32, a, b), high)
    either = np.isnan(a) | np.isnan(b)
    same_floats(one("max.NaN.f32 %z, %x0, %x1;", np.float32, a, b), np.where(either, np.float32(np.nan), high))


def test_sign_instructions_keep_the_payload() -> None:
    a = floats(RNG)
    np.testing.assert_array_equal(one("neg.f32 %z, %x0;", np.uint32, a), a.view(np.uint32) ^ 0x80000000)
    np.testing.assert_array_equal(one("abs.f32 %z, %x0;", np.uint32, a), a.view(np.uint32) & 0x7FFFFFFF)


@pytest.mark.parametrize(
    ("compare", "formula"),
    [
        ("lt", lambda a, b: a < b),
        ("eq", lambda a, b: a == b),
        ("ne", lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)),
        ("neu", lambda a, b: ~(a == b)),
        ("geu", lambda a, b: ~(a < b)),
        ("num", lambda a, b: ~np.isnan(a) & ~np.isnan(b)),
        ("nan", lambda a, b: np.isnan(a) | np.isnan(b)),
    ],
)
def test_float_comparisons_and_nan(compare: str, formula: Any) -> None:
    a, b = floats(RNG), np.roll(floats(RNG), 3)
    b[:4] = a[:4]
    result = one(f"setp.{compare}.f32 %p1, %x0, %x1; selp.u32 %z, 1, 0, %p1;", np.uint32, a, b)
    np.testing.assert_array_equal(result, formula(a, b))


@pytest.mark.parametrize("name", ["s32", "u32", "s64", "u64", "s16", "u8"])
@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_integers_to_fp32_round_as_told(name: str, mode: str) -> None:
    width = {"8": np.uint16, "16": np.uint16, "32": np.uint32, "64": np.uint64}[name[1:]]
    raw = words(RNG, width)
    source = raw.astype(f"u{int(name[1:]) // 8}").view(f"{'i' if name[0] == 's' else 'u'}{int(name[1:]) // 8}")
    expected = np.array([directed(Fraction(int(v)), mode) for v in source], np.float32)
    same_floats(one(f"cvt.{mode}.f32.{name} %z, %x0;", np.float32, raw), expected)


@pytest.mark.parametrize("name", ["s32", "u32", "s16", "u8", "s64"])
@pytest.mark.parametrize(
    ("mode", "function"), [("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)]
)
def test_fp32_to_integers_saturates_and_nan_is_zero(name: str, mode: str, function: Any) -> None:
    a = np.concatenate(
        [floats(RNG)[:16], finite(8), np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.0**31, -(2.0**31), 255.5], np.float32)]
    )
    kind = np.dtype(f"{'i' if name[0] == 's' else 'u'}{int(name[1:]) // 8}")
    info = np.iinfo(kind)
    expected = []
    for x in a:
        if np.isnan(x):
            expected.append(0 if info.bits < 64 else -(2**63))
        else:
            with np.errstate(invalid="ignore"):
                v = function(x.astype(np.float64))
            expected.append(min(max(int(v) if np.isfinite(v) else (2**70 if v > 0 else -(2**70)), info.min), info.max))
    register = np.dtype(np.uint16) if info.bits == 8 else np.dtype(f"u{info.bits // 8}")
    result = one(f"cvt.{mode}.{name}.f32 %z, %x0;", register, a)
    np.testing.assert_array_equal(result.astype(f"u{kind.itemsize}").view(kind), np.array(expected, dtype=kind))


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_fp32_to_16_bits_and_back(name: str, dtype: Any) -> None:
    for _ in range(10):
        a = floats(RNG)
        a[16:] = finite(16)
        with np.errstate(all="ignore"):
            rounded = a.astype(dtype)
        expected = rounded.view(np.uint16).copy()
        expected[np.isnan(a)] = 0x7FFF
        np.testing.assert_array_equal(one(f"cvt.rn.{name}.f32 %z, %x0;", np.uint16, a), expected)
        pair = one(f"cvt.rn.{name}x2.f32 %z, %x0, %x1;", np.uint32, a, np.roll(a, 1))
        np.testing.assert_array_equal(pair, expected.astype(np.uint32) << 16 | np.roll(expected, 1))
        every = RNG.integers(0, 2**16, 32).astype(np.uint16)
        back = every.view(dtype).astype(np.float32)
        same_floats(one(f"cvt.f32.{name} %z, %x0;", np.float32, every), back)


@pytest.mark.parametrize(
    ("name", "dtype", "top"), [("e4m3x2", ml_dtypes.float8_e4m3fn, 448.0), ("e5m2x2", ml_dtypes.float8_e5m2, 57344.0)]
)
def test_fp8_conversions_saturate(name: str, dtype: Any, top: float) -> None:
    for _ in range(10):
        a, b = finite(), (finite() * 2.0**-18).astype(np.float32)
        a[:8] = [np.nan, np.inf, -np.inf, top, top * 1.05, -top * 3, 0.0, -0.0]
        code = lambda v: np.clip(v, -top, top).astype(dtype).view(np.uint8)  # noqa: E731
        high, low = code(a), code(b)
        high[np.isnan(a)] = 0x7F
        result = one(f"cvt.rn.satfinite.{name}.f32 %z, %x0, %x1;", np.uint16, a, b)
        np.testing.assert_array_equal(result, high.astype(np.uint16) << 8 | low)
    codes = np.arange(256, dtype=np.uint8)
    for start in range(0, 256, 64):
        part = codes[start : start + 64]
        packed = one(f"cvt.rn.f16x2.{name} %z, %x0;", np.uint32, part.view(np.uint16))
        exact = part.view(dtype).astype(np.float16).view(np.uint16).copy()
        exact[np.isnan(part.view(dtype).astype(np.float32))] = 0x7FFF
        np.testing.assert_array_equal(packed.view(np.uint16), exact)


def _fused(x: float, y: float, z: float, dtype: Any) -> int:
    """Bits of x * y + z rounded once, to nearest even: no float type holds the exact sum, so fractions decide."""
    if not np.isfinite([x, y, z]).all():
        special = np.float64(x) * np.float64(y) + np.float64(z)
        return 0x7FFF if np.isnan(special) else int(np.array(special).astype(dtype).view(np.uint16))
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if exact == 0:
        return int(np.array(np.float64(x) * np.float64(y) + np.float64(z)).astype(dtype).view(np.uint16))
    infinity = int(np.array(np.inf).astype(dtype).view(np.uint16))

    def value(code: int) -> Fraction:
        """The magnitude with this code; infinity stands one step beyond the largest, where rounding meets it."""
        finite = np.array([min(code, infinity - 1), min(code, infinity - 1) - 1], np.uint16).view(dtype)
        high, low = (Fraction(float(f)) for f in finite)
        return high if code < infinity else 2 * high - low

    low, high = 0, infinity
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(middle) <= abs(exact) else (low, middle)
    below, above = abs(exact) - value(low), value(high) - abs(exact)
    code = low if below < above or (below == above and low % 2 == 0) else high
    return code | (0x8000 if exact < 0 else 0)


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_16_bit_arithmetic_rounds_once(name: str, dtype: Any) -> None:
    def bits(values: np.ndarray) -> np.ndarray:
        out = values.astype(dtype).view(np.uint16).copy()
        out[np.isnan(values.astype(np.float32))] = 0x7FFF
        return out

    for _ in range(10):
        a, b, c = (RNG.integers(0, 2**16, 32).astype(np.uint16) for _ in range(3))
        with np.errstate(all="ignore"):
            x, y, z = (v.view(dtype).astype(np.float64) for v in (a, b, c))
            np.testing.assert_array_equal(one(f"add.{name} %z, %x0, %x1;", np.uint16, a, b), bits(x + y))
            np.testing.assert_array_equal(one(f"mul.{name} %z, %x0, %x1;", np.uint16, a, b), bits(x * y))
            wide = one(
                f"fma.rn.{name}x2 %z, %x0, %x1, %x2;", np.uint32, *(np.tile(v, 2).view(np.uint32) for v in (a, b, c))
            )
            expected = [_fused(*values, dtype) for values in zip(x, y, z, strict=True)]
            np.testing.assert_array_equal(wide.view(np.uint16), np.tile(np.array(expected, np.uint16), 2))


def test_cvt_pack_saturates_and_concatenates() -> None:
    a, b, c = words(RNG, np.int32) >> 20, words(RNG, np.int32) >> 22, words(RNG)
    a, b = a.astype(np.int32), b.astype(np.int32)
    byte = lambda v: np.clip(v, -128, 127).astype(np.int8).view(np.uint8).astype(np.uint32)  # noqa: E731
    expected = byte(a) << 8 | byte(b) | c << 16
    np.testing.assert_array_equal(one("cvt.pack.sat.s8.s32.b32 %z, %x0, %x1, %x2;", np.uint32, a, b, c), expected)


def test_double_arithmetic() -> None:
    a, b = RNG.standard_normal(32), RNG.standard_normal(32)
    np.testing.assert_array_equal(one("add.f64 %z, %x0, %x1;", np.float64, a, b), a + b)
    np.testing.assert_array_equal(one("mul.f64 %z, %x0, %x1;", np.float64, a, b), a * b)
    np.testing.assert_array_equal(one("cvt.rn.f32.f64 %z, %x0;", np.float32, a), a.astype(np.float32))


@pytest.mark.parametrize(
    "text",
    ["ex2.approx.f32 %z, %x0;", "rcp.approx.ftz.f32 %z, %x0;", "sin.approx.f32 %z, %x0;", "tanh.approx.f32 %z, %x0;"],
)
def test_approximations_are_refused_by_name_and_line(text: str) -> None:
    with pytest.raises(PtxError, match=rf"{text.split()[0]}.*PTX line \d+"):
        one(text, np.float32, finite())
