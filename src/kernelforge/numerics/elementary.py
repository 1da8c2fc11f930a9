"""Pinned elementary functions (contract C6), in NumPy; ``docs/elementary.md`` is their specification.

Each maps a float32 array to a float32 array of the same shape with float32 add, subtract and multiply, compares,
selects and int32 arithmetic only. Arguments below 2^-50 in magnitude read as +0, results that would be below 2^-100
are +0, NaN is 0x7FC00000; no operation reads or makes a subnormal. The TileLang twins are in ``tile/elementary.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

NAN = 0x7FC00000
INF = 0x7F800000
ONE = 0x3F800000
MAGNITUDE = 0x7FFFFFFF
SIGN = -0x80000000

TINY = 0x26800000
"""2^-50: smaller magnitudes read as zero."""

ROUND = 0x4B400000
"""12582912.0; adding it rounds to an integer, which is the bits of the sum minus this."""

EXP2_LOWEST, EXP2_OVERFLOW = 0x42C80000, 0x43000000
"""Magnitudes: of -100, whose power is 2^-100; of 128, the least argument whose power is Inf."""

EXP_LOWEST, EXP_HIGHEST = 0x428AA122, 0x42B17217
"""Magnitudes: of the least argument with e^x >= 2^-100; of the greatest whose exponential is finite."""

EXP2 = (0x3920FDDE, 0x3AAF9F29, 0x3C1D96A6, 0x3D635774, 0x3E75FDEE, 0xBE9D1BCF)
"""q of 2^r = 1 + (r + r*q(r)), |r| <= 1/2, highest power first."""

EXP = (0x3AB51225, 0x3C091CEB, 0x3D2AAC79, 0x3E2AAA49, 0x3EFFFFFE)
"""q of e^r = 1 + (r + r*(r*q(r))), |r| <= ln(2)/2, highest power first."""

LOG2_E, LN2_HIGH, LN2_LOW = 0x3FB8AA3B, 0x3F317200, 0x35BFBE8E
"""log2(e); ln(2) in two parts, of which n * high is exact for |n| <= 128."""

RECIP_SEED, RECIP_STEP = 0x7EB21A50, 0x3FB50700
RSQRT_SEED, RSQRT_STEP_1, RSQRT_STEP_0 = 0x5F2A7183, 0x403E4D1C, 0x407E594C
RECIP_MAX = 0x71800000
"""2^100: larger magnitudes have reciprocals below 2^-100."""

BINADE = 0x00800000
"""One step of the exponent field."""

LOG1P = (
    *(0xBB597AC1, 0x3CA58418, 0xBD6C318E, 0x3DDABCDF, 0xBE1D3D40),
    *(0x3E49AE4F, 0xBE7F9370, 0x3EAAA6F8, 0xBEFFFFE9),
)
"""q of log1p(u) = u + u*(u*q(u)), 0 <= u <= 1, highest power first."""

LOG1P_TINY = 0x32800000
"""2^-26: below it log1p(u) rounds to u."""


def value(bits: int) -> np.float32:
    """The float32 with these bits."""
    number: np.float32 = np.float32(struct.unpack("<f", struct.pack("<I", bits))[0])
    return number


def _bits(x: Float32) -> Int32:
    return np.ascontiguousarray(x).view(np.int32)


def _floats(bits: Int32) -> Float32:
    return bits.astype(np.int32, copy=False).view(np.float32)


def _elementwise(function: Callable[[Float32], Float32]) -> Callable[[Float32], Float32]:
    """Check the dtype, and keep NumPy quiet about values that a select then drops."""

    @wraps(function)
    def checked(x: Float32) -> Float32:
        if not isinstance(x, np.ndarray) or x.dtype != np.float32:
            given = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise TypeError(f"{function.__name__}: x is {given}; it must be a float32 array: x.astype(np.float32)")
        with np.errstate(all="ignore"):
            return function(x.reshape(-1)).reshape(x.shape)

    return checked


def _horner(r: Float32, coefficients: Sequence[int]) -> Float32:
    q = np.full_like(r, value(coefficients[0]))
    for bits in coefficients[1:]:
        q = q * r + value(bits)
    return q


def _round(x: Float32) -> Int32:
    """The integer nearest to |x| <= 2^22, ties to even."""
    rounded: Int32 = _bits(x + value(ROUND)) - np.int32(ROUND)
    return rounded


def _scaled_power(r: Float32, q: Float32, n: Int32) -> Int32:
    """Bits of (1 + (r + r*q)) * 2^n; the scale is added to the exponent field."""
    return _bits(np.float32(1) + (r + r * q)) + (n << 23)


def _is_nan(bits: Int32) -> NDArray[np.bool_]:
    return (bits & MAGNITUDE) > INF


@_elementwise
def exp2(x: Float32) -> Float32:
    """2^x. Inf for x >= 128, +0 for x < -100."""
    bits = _bits(x)
    magnitude = bits & MAGNITUDE
    below = (bits < 0) & (magnitude > EXP2_LOWEST)
    normal = (magnitude >= TINY) & (magnitude < EXP2_OVERFLOW) & ~below
    v = _floats(np.where(normal, bits, 0))
    n = _round(v)
    r = v - n.astype(np.float32)
    y = _scaled_power(r, _horner(r, EXP2), n)
    y = np.where(magnitude >= EXP2_OVERFLOW, INF, y)
    y = np.where(below, 0, y)
    return _floats(np.where(_is_nan(bits), NAN, y))


@_elementwise
def exp(x: Float32) -> Float32:
    """e^x. Inf for x > 88.72283, +0 for x < -100 ln 2."""
    bits = _bits(x)
    magnitude = bits & MAGNITUDE
    below = (bits < 0) & (magnitude > EXP_LOWEST)
    above = (bits >= 0) & (magnitude > EXP_HIGHEST)
    normal = (magnitude >= TINY) & ~below & ~above & ~_is_nan(bits)
    v = _floats(np.where(normal, bits, 0))
    n = _round(v * value(LOG2_E))
    m = n.astype(np.float32)
    r = (v - m * value(LN2_HIGH)) - m * value(LN2_LOW)
    y = _scaled_power(r, _horner(r, EXP) * r, n)
    y = np.where(above, INF, y)
    y = np.where(below, 0, y)
    return _floats(np.where(_is_nan(bits), NAN, y))


@_elementwise
def recip_positive(x: Float32) -> Float32:
    """1/x for 2^-50 <= x <= 2^100, where its bits are those of :func:`recip`; elsewhere no value is defined."""
    seed = np.int32(RECIP_SEED) - _bits(x)
    y: Float32 = _floats(seed + np.int32(BINADE)) * (value(RECIP_STEP) - x * _floats(seed))
    y = y + y * (np.float32(1) - x * y)
    return y


@_elementwise
def recip(x: Float32) -> Float32:
    """1/x. +Inf for |x| < 2^-50 of either sign, +0 for |x| > 2^100."""
    bits = _bits(x)
    magnitude = bits & MAGNITUDE
    normal = (magnitude >= TINY) & (magnitude <= RECIP_MAX)
    y = _bits(recip_positive(_floats(np.where(normal, magnitude, ONE)))) | (bits & np.int32(SIGN))
    y = np.where(magnitude < TINY, INF, y)
    y = np.where(magnitude > RECIP_MAX, 0, y)
    return _floats(np.where(magnitude > INF, NAN, y))


@_elementwise
def rsqrt(x: Float32) -> Float32:
    """1/sqrt(x). +Inf for |x| < 2^-50 of either sign, +0 for Inf, NaN below."""
    bits = _bits(x)
    normal = (bits >= TINY) & (bits < INF)
    v = _floats(np.where(normal, bits, ONE))
    seed = np.int32(RSQRT_SEED) - (_bits(v) >> 1)
    t = (v * _floats(seed)) * _floats(seed)
    y = _floats(seed - np.int32(BINADE)) * (t * (t - value(RSQRT_STEP_1)) + value(RSQRT_STEP_0))
    e = np.float32(0.5) - ((np.float32(0.5) * v) * y) * y
    corrected: Any = y + y * e
    z = _bits(corrected)
    z = np.where(bits == INF, 0, z)
    z = np.where((bits < 0) | (bits > INF), NAN, z)
    return _floats(np.where((bits & MAGNITUDE) < TINY, INF, z))


def _exp_of_minus_magnitude(x: Float32) -> Float32:
    return exp(_floats(_bits(x) | np.int32(SIGN)))


@_elementwise
def sigmoid(x: Float32) -> Float32:
    """1 / (1 + e^-x). +0 for x < -100 ln 2."""
    e = _exp_of_minus_magnitude(x)
    r = recip_positive(np.float32(1) + e)
    y = np.where(_bits(x) < 0, e * r, r)
    return _floats(np.where(_is_nan(_bits(x)), NAN, _bits(y)))


@_elementwise
def silu(x: Float32) -> Float32:
    """x * sigmoid(x). +0 for x < -100 ln 2, where the sigmoid is, and for |x| < 2^-50."""
    bits = _bits(x)
    magnitude = bits & MAGNITUDE
    below = (bits < 0) & (magnitude > EXP_LOWEST)
    v = _floats(np.where((magnitude < TINY) | below, 0, bits))
    return _floats(np.where(_is_nan(bits), NAN, _bits(v * sigmoid(x))))


@_elementwise
def softplus(x: Float32) -> Float32:
    """log(1 + e^x). +0 for x < -100 ln 2."""
    e = _exp_of_minus_magnitude(x)
    u = _floats(np.where(_bits(e) < LOG1P_TINY, 0, _bits(e)))
    log1p: Float32 = e + u * (u * _horner(u, LOG1P))
    bits = _bits(x)
    positive_part = _floats(np.where(bits < TINY, 0, bits))
    return _floats(np.where(_is_nan(bits), NAN, _bits(positive_part + log1p)))
