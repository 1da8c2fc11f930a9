"""bfloat16 and binary16 bits in kernels (carried as uint16 buffers); int32 expressions."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from .integer import FLOAT32_INFINITY, FLOAT32_NAN, MAGNITUDE, Expression, canonical_bits, round_magnitude

INFINITY = 0x7F80
NAN = 0x7FC0

SMALLEST_READ = 77 << 7
"""bfloat16 bits of 2^-50."""


def magnitude(code: Expression) -> Expression:
    """The bits without the sign; ordered like the magnitudes, 0x7F80 and above is not finite."""
    return code & 0x7FFF


def float32_bits(code: Expression) -> Expression:
    """float32 bits of a bfloat16; exact."""
    return code << 16


def significand(code: Expression) -> Expression:
    """Magnitude = significand * 2^exponent(code), eight bits; 0 below 2^-50, where the contract reads zero."""
    return T.if_then_else((code & 0x7FFF) < SMALLEST_READ, 0, (code & 0x7F) | 0x80)


def exponent(code: Expression) -> Expression:
    """The exponent under :func:`significand`."""
    return ((code >> 7) & 0xFF) - 134


@T.macro
def encode(bits: Expression) -> Any:
    """bfloat16 bits of the float32 with these bits, to nearest even; NaN is 0x7FC0 and -0 is +0."""
    canonical = T.alloc_var("int32")
    canonical = canonical_bits(bits)
    magnitude_bits = T.alloc_var("int32")
    magnitude_bits = canonical & MAGNITUDE
    rounded = (magnitude_bits + 0x7FFF + ((magnitude_bits >> 16) & 1)) >> 16
    return T.if_then_else(canonical == FLOAT32_NAN, NAN, rounded | ((canonical >> 16) & 0x8000))


@T.macro
def encode_binary16(bits: Expression) -> Any:
    """binary16 bits of the float32 with these bits, to nearest even.

    Overflow gives infinity, subnormal results are kept, NaN is 0x7E00 and a zero result is +0.
    """
    largest = T.alloc_var("int32")
    largest = bits & MAGNITUDE
    # Beyond 2^16 the exponent no longer fits: clamp first, the code then saturates at infinity.
    rounded = T.alloc_var("int32")
    rounded = T.min(round_magnitude(T.min(largest, 0x47800000), 0, 10, -14), 0x7C00)
    return T.if_then_else(
        largest > FLOAT32_INFINITY, 0x7E00, T.if_then_else(rounded == 0, 0, rounded | ((bits >> 16) & 0x8000))
    )
