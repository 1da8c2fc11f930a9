"""Pinned elementary functions (contract C6) as TileLang macros; the twins of ``numerics/elementary.py``.

Call them as expressions inside a ``T.Parallel`` body, as often as wanted, nested too:

    from kernelforge.numerics import tile

    for i, j in T.Parallel(bm, bn):
        y[i, j] = tile.exp2(x[i, j] - m[i]) * tile.recip(total[i])

Each call stores its float32 argument in a variable of its own, opens a composite region named after the function
(operands: argument and result, both variables of shape (1,)), and is worth the result variable. Every intermediate that
is used twice is a variable, because compilers on the way would otherwise write its expression out twice; ``float`` sums
that they would cancel are taken as bits. ``sigmoid``, ``silu`` and ``softplus`` nest the regions they are built on.

``recip_positive`` and ``exp2_nonpositive`` are ``recip`` and ``exp2`` without the compares, for arguments known to lie
in [2^-50, 2^100] and [-100, 0].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from .. import elementary as pinned
from .composite import composite


def _region(name: str, argument: Any, result: Any) -> Any:
    """The composite of a function of one variable; a variable reads as the load of its only element."""
    return composite(name, argument.buffer, result.buffer)


def _constant(bits: int) -> Any:
    """The float32 with these bits."""
    return T.float32(float(pinned.value(bits)))


def _bits(x: Any) -> Any:
    return T.reinterpret(x, "int32")


def _float(bits: Any) -> Any:
    return T.reinterpret(bits, "float32")


def _horner(r: Any, coefficients: Sequence[int]) -> Any:
    q = _constant(coefficients[0])
    for bits in coefficients[1:]:
        q = q * r + _constant(bits)
    return q


def _round(x: Any) -> Any:
    """The integer nearest to |x| <= 2^22, ties to even. ``(x + c) - c`` in float32 would be cancelled."""
    return _bits(x + _constant(pinned.ROUND)) - pinned.ROUND


def _nan_or(bits: Any, otherwise: Any) -> Any:
    """``otherwise``, but the canonical NaN where ``bits`` are a NaN's."""
    return T.if_then_else((bits & pinned.MAGNITUDE) > pinned.INF, pinned.NAN, otherwise)


@T.macro
def exp2(x: Any) -> Any:
    """2^x. Inf for x >= 128, +0 for x < -100."""
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("exp2", argument, result):
        bits = T.alloc_var("int32")
        magnitude = T.alloc_var("int32")
        v = T.alloc_var("float32")
        n = T.alloc_var("int32")
        r = T.alloc_var("float32")
        q = T.alloc_var("float32")
        bits = _bits(argument)
        magnitude = bits & pinned.MAGNITUDE
        below = (bits < 0) & (magnitude > pinned.EXP2_LOWEST)
        above = magnitude >= pinned.EXP2_OVERFLOW
        v = _float(T.if_then_else((magnitude < pinned.TINY) | above | below, 0, bits))
        n = _round(v)
        r = v - T.cast(n, "float32")
        q = T.float32(1) + (r + r * _horner(r, pinned.EXP2))
        n = _bits(q) + (n << 23)
        n = T.if_then_else(above, pinned.INF, n)
        n = T.if_then_else(below, 0, n)
        result = _float(_nan_or(bits, n))
    return result


@T.macro
def exp2_nonpositive(x: Any) -> Any:
    """2^x for -100 <= x <= 0, with the bits of :func:`exp2`, and a NaN for a NaN; elsewhere no value is defined.

    The power of two is multiplied in, where ``exp2`` adds to the exponent: exact as well, and a NaN needs no compare.
    """
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("exp2_nonpositive", argument, result):
        shifted = T.alloc_var("float32")
        r = T.alloc_var("float32")
        shifted = argument + _constant(pinned.ROUND)
        r = shifted - _constant(pinned.ROUND)  # two statements, or compilers on the way cancel it
        r = argument - r
        result = (T.float32(1) + (r + r * _horner(r, pinned.EXP2))) * _float((_bits(shifted) << 23) + pinned.ONE)
    return result


@T.macro
def exp(x: Any) -> Any:
    """e^x. Inf for x > 88.72283, +0 for x < -100 ln 2."""
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("exp", argument, result):
        bits = T.alloc_var("int32")
        magnitude = T.alloc_var("int32")
        v = T.alloc_var("float32")
        n = T.alloc_var("int32")
        m = T.alloc_var("float32")
        r = T.alloc_var("float32")
        q = T.alloc_var("float32")
        bits = _bits(argument)
        magnitude = bits & pinned.MAGNITUDE
        below = (bits < 0) & (magnitude > pinned.EXP_LOWEST)
        above = (bits >= 0) & (magnitude > pinned.EXP_HIGHEST)
        # A negative NaN is below.
        v = _float(T.if_then_else((magnitude < pinned.TINY) | above | below, 0, bits))
        n = _round(v * _constant(pinned.LOG2_E))
        m = T.cast(n, "float32")
        r = (v - m * _constant(pinned.LN2_HIGH)) - m * _constant(pinned.LN2_LOW)
        q = T.float32(1) + (r + r * (_horner(r, pinned.EXP) * r))
        n = _bits(q) + (n << 23)
        n = T.if_then_else(above, pinned.INF, n)
        n = T.if_then_else(below, 0, n)
        result = _float(_nan_or(bits, n))
    return result


@T.macro
def recip_positive(x: Any) -> Any:
    """1/x for 2^-50 <= x <= 2^100, with the bits of :func:`recip`; elsewhere no value is defined."""
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("recip_positive", argument, result):
        seed = T.alloc_var("int32")
        y = T.alloc_var("float32")
        seed = pinned.RECIP_SEED - _bits(argument)
        y = _float(seed + pinned.BINADE) * (_constant(pinned.RECIP_STEP) - argument * _float(seed))
        result = y + y * (T.float32(1) - argument * y)
    return result


@T.macro
def recip(x: Any) -> Any:
    """1/x. +Inf for |x| < 2^-50 of either sign, +0 for |x| > 2^100."""
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("recip", argument, result):
        bits = T.alloc_var("int32")
        magnitude = T.alloc_var("int32")
        y = T.alloc_var("float32")
        bits = _bits(argument)
        magnitude = bits & pinned.MAGNITUDE
        tiny = magnitude < pinned.TINY
        huge = magnitude > pinned.RECIP_MAX
        y = recip_positive(_float(T.if_then_else(tiny | huge, pinned.ONE, magnitude)))
        special = T.alloc_var("int32")
        special = T.if_then_else(tiny, pinned.INF, 0)
        special = _nan_or(bits, special)
        result = _float(T.if_then_else(tiny | huge, special, _bits(y) | (bits & T.int32(pinned.SIGN))))
    return result


@T.macro
def rsqrt(x: Any) -> Any:
    """1/sqrt(x). +Inf for |x| < 2^-50 of either sign, +0 for Inf, NaN below."""
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("rsqrt", argument, result):
        bits = T.alloc_var("int32")
        v = T.alloc_var("float32")
        seed = T.alloc_var("int32")
        t = T.alloc_var("float32")
        y = T.alloc_var("float32")
        bits = _bits(argument)
        normal = (bits >= pinned.TINY) & (bits < pinned.INF)
        v = _float(T.if_then_else(normal, bits, pinned.ONE))
        seed = pinned.RSQRT_SEED - (_bits(v) >> 1)
        t = (v * _float(seed)) * _float(seed)
        y = _float(seed - pinned.BINADE) * (t * (t - _constant(pinned.RSQRT_STEP_1)) + _constant(pinned.RSQRT_STEP_0))
        y = y + y * (T.float32(0.5) - ((T.float32(0.5) * v) * y) * y)
        limited = T.alloc_var("int32")
        limited = T.if_then_else(normal, _bits(y), pinned.NAN)
        limited = T.if_then_else(bits == pinned.INF, 0, limited)
        limited = T.if_then_else((bits & pinned.MAGNITUDE) < pinned.TINY, pinned.INF, limited)
        result = _float(limited)
    return result


@T.macro
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x). +0 for x < -100 ln 2."""
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("sigmoid", argument, result):
        bits = T.alloc_var("int32")
        e = T.alloc_var("float32")
        r = T.alloc_var("float32")
        bits = _bits(argument)
        e = exp(_float(bits | T.int32(pinned.SIGN)))
        r = recip_positive(T.float32(1) + e)
        result = _float(_nan_or(bits, _bits(T.if_then_else(bits < 0, e * r, r))))
    return result


@T.macro
def silu(x: Any) -> Any:
    """x * sigmoid(x). +0 for x < -100 ln 2, where the sigmoid is, and for |x| < 2^-50."""
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("silu", argument, result):
        bits = T.alloc_var("int32")
        magnitude = T.alloc_var("int32")
        v = T.alloc_var("float32")
        y = T.alloc_var("float32")
        bits = _bits(argument)
        magnitude = bits & pinned.MAGNITUDE
        # Where the sigmoid is +0, so that neither -0 nor Inf * 0 comes up.
        below = (bits < 0) & (magnitude > pinned.EXP_LOWEST)
        v = _float(T.if_then_else((magnitude < pinned.TINY) | below, 0, bits))
        y = v * sigmoid(argument)
        result = _float(_nan_or(bits, _bits(y)))
    return result


@T.macro
def softplus(x: Any) -> Any:
    """log(1 + e^x). +0 for x < -100 ln 2."""
    argument = T.alloc_var("float32")
    result = T.alloc_var("float32")
    argument = x
    with _region("softplus", argument, result):
        bits = T.alloc_var("int32")
        e = T.alloc_var("float32")
        u = T.alloc_var("float32")
        bits = _bits(argument)
        e = exp(_float(bits | T.int32(pinned.SIGN)))
        u = _float(T.if_then_else(_bits(e) < pinned.LOG1P_TINY, 0, _bits(e)))
        log_term = e + u * (u * _horner(u, pinned.LOG1P))
        positive_part = _float(T.if_then_else(bits < pinned.TINY, 0, bits))
        result = _float(_nan_or(bits, _bits(positive_part + log_term)))
    return result
