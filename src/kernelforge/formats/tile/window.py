"""16-bit windows of E4M3 and BF16 blocks in kernels (contract C4); int32 expressions."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from . import bf16, e4m3
from .integer import Expression

UNUSABLE = 255
"""Exponent of a block with a NaN or an infinity: its windows are 0 and its factor NaN."""


def exponent_e4m3(amax: Expression) -> Expression:
    """Window exponent, floor(log2(amax)) + 1, from a block's largest :func:`e4m3.magnitude`; 0 for a block of zeros."""
    # Magnitudes 1..7 are subnormal, multiples of 2^-9.
    subnormal = T.if_then_else(amax >= 4, -6, T.if_then_else(amax >= 2, -7, -8))
    finite = T.if_then_else(amax >= 8, (amax >> 3) - 6, T.if_then_else(amax == 0, 0, subnormal))
    return T.if_then_else(amax == e4m3.NAN, UNUSABLE, finite)


def exponent_bf16(amax: Expression) -> Expression:
    """Window exponent from a block's largest :func:`bf16.magnitude`; 0 where all read as zero.

    floor(log2(amax)) + 1, and one more for the significand 255, whose window would be 32640: adding 1 carries there.
    """
    finite = T.if_then_else(amax < bf16.SMALLEST_READ, 0, ((amax + 1) >> 7) - 126)
    return T.if_then_else(amax >= bf16.INFINITY, UNUSABLE, finite)


@T.macro
def _place(significand: Expression, places: Expression, width: int) -> Any:
    """``significand * 2^places`` rounded to nearest even.

    The significand is below 2^width, so it vanishes after width + 1 places to the right.
    """
    raised = T.alloc_var("int32")
    raised = significand << (T.max(places, -width - 1) + width + 1)
    return (raised + ((1 << width) - 1) + ((raised >> (width + 1)) & 1)) >> (width + 1)


@T.macro
def window_e4m3(code: Expression, block_exponent: Expression) -> Any:
    """RNE(x * 2^(15 - block_exponent)) of an E4M3 code, in [-32639, 32639]; 0 where the block is unusable."""
    placed = T.alloc_var("int32")
    placed = _place(e4m3.significand(code), e4m3.exponent(code) + 15 - block_exponent, 4)
    placed = T.if_then_else(code >= 0x80, -placed, placed)
    return T.if_then_else(block_exponent == UNUSABLE, 0, placed)


@T.macro
def window_bf16(code: Expression, block_exponent: Expression) -> Any:
    """RNE(x * 2^(15 - block_exponent)) of BF16 bits, in [-32639, 32639]; 0 where the block is unusable."""
    placed = T.alloc_var("int32")
    placed = _place(bf16.significand(code), bf16.exponent(code) + 15 - block_exponent, 8)
    placed = T.if_then_else(code >= 0x8000, -placed, placed)
    return T.if_then_else(block_exponent == UNUSABLE, 0, placed)


def high(window: Expression) -> Expression:
    """High int8 slice of a window: ``window = 256 * high + low``."""
    return (window + 128) >> 8


def low(window: Expression) -> Expression:
    """Low int8 slice, in [-128, 127]."""
    return ((window + 128) & 255) - 128


def window_bits_as_bf16(window: Expression) -> Expression:
    """bfloat16 bits of a window of E4M3 or BF16 data; exact, as it has eight significant bits at most."""
    return (T.reinterpret(T.cast(window, "float32"), "int32") >> 16) & 0xFFFF
