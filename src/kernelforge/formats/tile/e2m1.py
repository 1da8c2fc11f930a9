"""E2M1 codes in kernels; int32 expressions."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from .integer import Expression, round_magnitude

_DOUBLED = T.int32(0xC8643210 - 2**32)
"""Twice the magnitudes of codes 7 .. 0, four bits each: a table that lives in an immediate."""


def doubled(code: Expression) -> Expression:
    """Twice the value, in [-12, 12], of a code 0..15."""
    magnitude = (_DOUBLED >> ((code & 7) << 2)) & 15
    sign = code >> 3
    return (magnitude ^ (-sign)) + sign


def low(byte: Expression) -> Expression:
    """Code of the even index in a packed byte."""
    return byte & 15


def high(byte: Expression) -> Expression:
    """Code of the odd index in a packed byte 0..255."""
    return byte >> 4


def pack(even: Expression, odd: Expression) -> Expression:
    """Packed byte of two codes."""
    return even | (odd << 4)


@T.macro
def encode(bits: Expression, scale_exponent: Expression) -> Any:
    """Code of the float32 with these bits over 2^scale_exponent: to nearest even, saturating at 6, zero as +0.

    ``bits`` is finite and read by the contract's threshold; so is the magnitude a quantizer meets.
    """
    code = T.alloc_var("int32")
    code = T.min(round_magnitude(bits, scale_exponent, 1, 0), 7)
    return T.if_then_else(code == 0, 0, code | ((bits >> 28) & 8))
