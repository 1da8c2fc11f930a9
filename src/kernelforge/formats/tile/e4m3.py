"""E4M3 codes in kernels; int32 expressions."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from .integer import Expression, round_magnitude

NAN = 0x7F


def magnitude(code: Expression) -> Expression:
    """The code without its sign: ordered like the magnitudes (a block's largest is its amax), 0x7F is NaN."""
    return code & 0x7F


def significand(code: Expression) -> Expression:
    """Magnitude = significand * 2^exponent(code); below 16, with the hidden bit where the code is normal."""
    return (code & 7) | (T.min((code >> 3) & 15, 1) << 3)


def exponent(code: Expression) -> Expression:
    """The exponent under :func:`significand`, in [-9, 5]."""
    return T.max((code >> 3) & 15, 1) - 10


@T.macro
def encode(bits: Expression, scale_exponent: Expression) -> Any:
    """Code of the float32 with these bits over 2^scale_exponent: to nearest even, saturating at 448, zero as +0.

    ``bits`` is finite and read by the contract's threshold.
    """
    code = T.alloc_var("int32")
    code = T.min(round_magnitude(bits, scale_exponent, 3, -6), 0x7E)
    return T.if_then_else(code == 0, 0, code | ((bits >> 24) & 0x80))
