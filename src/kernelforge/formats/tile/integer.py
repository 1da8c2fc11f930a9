"""Rounding by integers, as expressions: nothing here is a float operation, so no compiler has anything to reorder.

Arguments and results are int32 expressions. An argument that is a load or a longer expression is evaluated wherever it
is used; store it in a ``T.alloc_var("int32")`` first.
"""

from __future__ import annotations

from typing import Any

import tilelang.language as T

Expression = Any
"""A TIR expression, or a Python number."""

MAGNITUDE = 0x7FFFFFFF
FLOAT32_INFINITY = 0x7F800000
FLOAT32_NAN = 0x7FC00000

SMALLEST_READ = 77 << 23
"""float32 bits of 2^-50: magnitudes below read as zero."""


def shift_right_to_even(value: Expression, places: Expression) -> Expression:
    """``value / 2^places`` rounded to nearest even; ``0 <= value < 2^30``, ``1 <= places <= 30``."""
    return (value + ((1 << (places - 1)) - 1) + ((value >> places) & 1)) >> places


def read_bits(bits: Expression) -> Expression:
    """float32 bits as the contract reads them: magnitudes below 2^-50 become +0."""
    return T.if_then_else((bits & MAGNITUDE) < SMALLEST_READ, 0, bits)


def canonical_bits(bits: Expression) -> Expression:
    """float32 bits as an op writes them: NaN is 0x7FC00000, -0 is +0."""
    magnitude = bits & MAGNITUDE
    return T.if_then_else(magnitude > FLOAT32_INFINITY, FLOAT32_NAN, T.if_then_else(magnitude == 0, 0, bits))


def power_of_two(exponent: Expression) -> Expression:
    """2^exponent as float32, for exponents in [-126, 127]."""
    return T.reinterpret((exponent + 127) << 23, "float32")


@T.macro
def round_magnitude(bits: Expression, scale_exponent: Expression, mantissa_bits: int, lowest_exponent: int) -> Any:
    """Code of ``|x| / 2^scale_exponent`` rounded to nearest even onto a small float format, not yet saturated.

    A format's codes continue across binades, so one sum serves: the rounded significand, plus the binade's number times
    2^mantissa_bits. Subnormal results only lose more places.

    Args:
        bits: float32 bits of x, |x| at least 2^-50 or zero, finite.
        scale_exponent: int32.
        mantissa_bits: 1 (E2M1), 3 (E4M3), 10 (binary16).
        lowest_exponent: of the format's normal numbers: 0 (E2M1), -6 (E4M3), -14 (binary16).
    """
    magnitude = T.alloc_var("int32")
    magnitude = bits & MAGNITUDE
    binade = T.alloc_var("int32")
    binade = (magnitude >> 23) - 127 - scale_exponent - lowest_exponent
    significand = T.alloc_var("int32")
    significand = T.if_then_else(magnitude < SMALLEST_READ, 0, (magnitude & 0x7FFFFF) | 0x800000)
    places = T.alloc_var("int32")
    places = T.min(23 - mantissa_bits + T.max(-binade, 0), 26)
    code = shift_right_to_even(significand, places) + (T.max(binade, 0) << mantissa_bits)
    return T.if_then_else(significand == 0, 0, code)
