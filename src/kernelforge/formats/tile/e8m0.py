"""E8M0 scale bytes in kernels."""

from __future__ import annotations

import tilelang.language as T

from ..e8m0 import BIAS, HIGHEST_READ, LOWEST_READ, NAN
from .integer import FLOAT32_INFINITY, FLOAT32_NAN, MAGNITUDE, SMALLEST_READ, Expression


def read_scale_bits(byte: Expression) -> Expression:
    """float32 bits of a scale as the contract reads it: +0 below 2^-50, Inf above 2^63, NaN for 0xFF."""
    finite = T.if_then_else(byte < BIAS + LOWEST_READ, 0, byte << 23)
    special = T.if_then_else(byte == NAN, FLOAT32_NAN, FLOAT32_INFINITY)
    return T.if_then_else(byte > BIAS + HIGHEST_READ, special, finite)


def read_scale(byte: Expression) -> Expression:
    """The scale as float32."""
    return T.reinterpret(read_scale_bits(byte), "float32")


def scale_byte(amax_bits: Expression, element: str, rule: str) -> Expression:
    """Scale byte of an MX block from the float32 bits of its largest magnitude.

    Args:
        amax_bits: the integer maximum of the block's magnitudes' bits: no float comparison is needed.
        element: ``"e2m1"`` (largest value 1.5 * 2^2) or ``"e4m3"`` (1.75 * 2^8).
        rule: ``"ceil"`` or ``"floor"``, see :func:`kernelforge.formats.mx.scale_exponent`.

    Returns:
        0 for a block of zeros (below 2^-50), 0xFF for one with an infinity or a NaN.
    """
    largest_fraction = {"e2m1": 0x400000, "e4m3": 0x600000}[element]
    largest_exponent = {"e2m1": 2, "e4m3": 8}[element]
    # A fraction above the format's largest carries into the exponent.
    carry = {"ceil": 0x7FFFFF - largest_fraction, "floor": 0}[rule]
    byte = ((amax_bits + carry) >> 23) - largest_exponent
    return T.if_then_else(amax_bits >= FLOAT32_INFINITY, NAN, T.if_then_else(amax_bits < SMALLEST_READ, 0, byte))


def scale_exponent(byte: Expression) -> Expression:
    """Exponent of a scale byte."""
    return byte - BIAS


def magnitude_bits(bits: Expression) -> Expression:
    """Bits of a float32 magnitude; their integer maximum over a block is its amax, non-finite values included."""
    return bits & MAGNITUDE
