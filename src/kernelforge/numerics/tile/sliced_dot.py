"""Fixed-point dots of BF16 and float32 operands (contract C4) as TileLang macros; the twins of ``numerics/window.py``.

A chunk of rows is cut once into int8 slices under one exponent per row (:func:`cut`: two slices of BF16 as a rule,
three of float32), and meets another in exact integer dots (:func:`sliced_dot`)::

    a = [T.alloc_shared((m, L), "int8") for _ in range(2)]
    a_exponent = T.alloc_shared((m,), "int32")
    cut(a_tile, "bfloat16", a, a_exponent)          # the same for b [n, L]
    sliced_dot(a, a_exponent, b, b_exponent, out)   # out[i, j], float32

A contraction longer than :func:`chunk_length` is a sum over chunks, ascending from +0, one float32 addition each;
:func:`sliced_dot_accumulate` is that step for activations that are cut as they arrive. Slices are lists of tiles,
highest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...formats.tile import bf16, integer
from ...formats.tile import window as windows
from .. import window as definition
from .composite import composite

SLICES = {"bfloat16": 2, "float32": 3}
"""Slices of an operand by its type, where a contraction does not ask for more."""

SMALLEST_RESULT = 27 << 23
"""float32 bits of 2^-100: smaller results of a chunk are +0."""


def chunk_length(length: int, a_dtype: str, b_dtype: str) -> int:
    """Elements under one exponent, as tiles hold them: the whole contraction rounded up to 32, or 128.

    Whole rows go up to 512 elements (256 for float32 against float32); elements beyond the contraction's end are zeros.
    """
    chunk = definition.chunk_length(length, SLICES[a_dtype], SLICES[b_dtype])
    return (chunk + 31) // 32 * 32


def magnitude(stored: Any, dtype: str) -> Any:
    """Integer that orders the magnitudes of stored elements (bfloat16 as uint16 bits, or float32)."""
    if dtype == "bfloat16":
        return bf16.magnitude(T.cast(stored, "int32"))
    return T.reinterpret(stored, "int32") & integer.MAGNITUDE


def float32_bits(stored: Any, dtype: str) -> Any:
    """Stored elements as the bits of a float32."""
    if dtype == "bfloat16":
        return bf16.float32_bits(T.cast(stored, "int32"))
    return T.reinterpret(stored, "int32")


def exponent(amax: Any, dtype: str) -> Any:
    """Window exponent from a chunk's largest :func:`magnitude`; ``windows.UNUSABLE`` if it is not finite.

    Of bfloat16 it is the same for two slices and for three: 255 is the significand that rounds too high in either.
    """
    if dtype == "bfloat16":
        return windows.exponent_bf16(amax)
    # One more where 23 bits would round past 8355711: significands from 0xFEFEFF carry here.
    finite = T.if_then_else(amax < integer.SMALLEST_READ, 0, ((amax + 0x10101) >> 23) - 126)
    return T.if_then_else(amax >= integer.FLOAT32_INFINITY, windows.UNUSABLE, finite)


@T.macro
def _window_of_three(bits: Any, chunk_exponent: Any) -> Any:
    """RNE(x * 2^(23 - chunk_exponent)) of float32 bits, within 8355711; 0 where the chunk is unusable."""
    largest = T.alloc_var("int32")
    largest = bits & integer.MAGNITUDE
    significand = T.alloc_var("int32")
    significand = T.if_then_else(largest < integer.SMALLEST_READ, 0, (largest & 0x7FFFFF) | 0x800000)
    places = T.alloc_var("int32")
    places = T.max(T.min(chunk_exponent + 127 - (largest >> 23), 26), 1)
    placed = T.alloc_var("int32")
    placed = integer.shift_right_to_even(significand, places)
    placed = T.if_then_else(bits < 0, -placed, placed)
    return T.if_then_else(chunk_exponent == windows.UNUSABLE, 0, placed)


@T.macro
def row_exponents(x: Any, dtype: str, exponents: Any) -> None:
    """exponents[i] (int32) = window exponent of row i of a tile as stored."""
    for i in T.Parallel(x.shape[0]):
        amax = T.alloc_var("int32")
        amax = 0
        for k in T.serial(x.shape[1]):
            amax = T.max(amax, magnitude(x[i, k], dtype))
        exponents[i] = exponent(amax, dtype)


@T.macro
def cut(x: Any, dtype: str, slices: Sequence[Any], exponents: Any) -> None:
    """Slices and exponents of a chunk of rows.

    Args:
        x: [m, L] tile as stored: uint16 bits ("bfloat16") or float32.
        dtype: "bfloat16" | "float32".
        slices: two (bfloat16) or three int8 [m, L] tiles in shared memory, highest first.
        exponents: int32 [m] tile in shared memory; ``windows.UNUSABLE`` for a row with an infinity or a NaN, whose
            slices are zeros.
    """
    row_exponents(x, dtype, exponents)
    for i, k in T.Parallel(x.shape[0], x.shape[1]):
        q = T.alloc_var("int32")
        if len(slices) == 2:
            q = windows.window_bf16(T.cast(x[i, k], "int32"), exponents[i])
            slices[0][i, k] = T.cast(windows.high(q), "int8")
            slices[1][i, k] = T.cast(windows.low(q), "int8")
        else:
            q = _window_of_three(float32_bits(x[i, k], dtype), exponents[i])
            last = T.alloc_var("int32")
            last = windows.low(q)
            rest = T.alloc_var("int32")
            rest = (q - last) >> 8
            slices[0][i, k] = T.cast(windows.high(rest), "int8")
            slices[1][i, k] = T.cast(windows.low(rest), "int8")
            slices[2][i, k] = T.cast(last, "int8")


@T.macro
def _multiply(a: Any, b: Any, dot: Any, clear: bool, transpose_B: bool) -> None:
    T.gemm(a, b, dot, transpose_B=transpose_B, clear_accum=clear)


@T.macro
def _add_class(total: Any, dot: Any, weight: float) -> None:
    for i, j in T.Parallel(total.shape[0], total.shape[1]):
        total[i, j] = total[i, j] + T.cast(dot[i, j], "float32") * T.float32(weight)


@T.macro
def _clear(total: Any) -> None:
    T.clear(total)


def join_products(
    a: Sequence[Any], b: Sequence[Any], dot: Any, total: Any, transpose_B: bool = True, ranks: int | None = None
) -> None:
    """total[i, j] = the dot of the windows of row i of ``a`` and row j of ``b``, in units of both: for two slices each
    ``(hh * 65536 + hl * 256) + ll``.

    Slice products of equal weight are summed exactly, and the sums joined from the highest weight down.

    Args:
        a: int8 [m, L] slices.
        b: int8 [n, L] slices; [L, n] where not ``transpose_B``.
        dot: int32 fragment [m, n], overwritten.
        total: float32 fragment [m, n].
        ranks: how many weights are kept, from the highest down; None keeps all.
    """
    _clear(total)
    ranks = definition.ranks_of(len(a), len(b)) if ranks is None else ranks
    for rank in range(ranks):
        pairs = [(i, rank - i) for i in range(len(a)) if 0 <= rank - i < len(b)]
        for i, j in pairs:
            _multiply(a[i], b[j], dot, (i, j) == pairs[0], transpose_B)
        _add_class(total, dot, 256.0 ** (ranks - 1 - rank))


@T.macro
def scaled(total: Any, a_exponent: Any, b_exponent: Any, unit: int) -> Any:
    """total * 2^(a_exponent + b_exponent - unit); +0 below 2^-100, infinite beyond float32, NaN for unusable rows.

    ``total`` is an integer as a float32, as :func:`join_products` gives it; ``unit`` is :func:`unit_of`.
    """
    bits = T.alloc_var("int32")
    bits = T.reinterpret(total, "int32")
    largest = T.alloc_var("int32")
    largest = bits & integer.MAGNITUDE
    places = T.alloc_var("int32")
    places = a_exponent + b_exponent - unit
    field = T.alloc_var("int32")
    field = (largest >> 23) + places
    moved = T.alloc_var("int32")
    moved = T.if_then_else(field > 254, (bits ^ largest) | integer.FLOAT32_INFINITY, bits + (places << 23))
    moved = T.if_then_else((largest == 0) | (field < (SMALLEST_RESULT >> 23)), 0, moved)
    unusable = (a_exponent == windows.UNUSABLE) | (b_exponent == windows.UNUSABLE)
    result = T.alloc_var("float32")
    result = T.reinterpret(T.if_then_else(unusable, integer.FLOAT32_NAN, moved), "float32")
    return result


def unit_of(a: Sequence[Any], b: Sequence[Any], ranks: int | None = None) -> int:
    """-log2 of the unit of :func:`join_products` under exponents 0: 30 for two slices each."""
    ranks = definition.ranks_of(len(a), len(b)) if ranks is None else ranks
    return definition.unit_of(len(a), len(b), ranks)


@T.macro
def sliced_dot(a: Sequence[Any], a_exponent: Any, b: Sequence[Any], b_exponent: Any, out: Any) -> None:
    """out[i, j] = the dot of one chunk, row i of ``a`` with row j of ``b``.

    Args:
        a, a_exponent: two or three int8 [m, L] tiles and an int32 [m] tile from :func:`cut`; L is a multiple of 32, at
            most 512 (256 for three slices on both sides).
        b, b_exponent: the same for [n, L].
        out: float32 [m, n] tile in shared memory; +0 below 2^-100, infinite beyond float32, NaN for unusable rows.
    """
    with composite("sliced_dot", out, a_exponent, b_exponent, *a, *b, a_slices=len(a), b_slices=len(b)):
        dot = T.alloc_fragment(out.shape, "int32")
        total = T.alloc_fragment(out.shape, "float32")
        join_products(a, b, dot, total)
        for i, j in T.Parallel(out.shape[0], out.shape[1]):
            out[i, j] = scaled(total[i, j], a_exponent[i], b_exponent[j], unit_of(a, b))


@T.macro
def sliced_dot_accumulate(
    acc: Any,
    x: Any,
    dtype: str,
    w: Sequence[Any],
    w_exponent: Any,
    columns: int,
    slices: int | None = None,
    ranks: int | None = None,
) -> None:
    """acc[i, j] += the dot of one chunk, row i of ``x`` with row j of ``w``, for j below ``columns``.

    Activations are cut inside the region, so that a backend which takes it whole reads them as they are stored.

    Args:
        acc: float32 [m, n] tile in shared memory, the running sums over chunks.
        x: activations as stored, [m, L]: uint16 bits ("bfloat16") or float32; zeros beyond the contraction's end.
        dtype: of ``x``.
        w, w_exponent: int8 [n, L] tiles and an int32 [n] tile from :func:`cut`.
        columns: those of ``acc`` that matter; matrix units want a multiple of 16, and the rest may hold anything.
        slices: of ``x``; None: those of its type.
        ranks: as in :func:`join_products`.
    """
    x_slices = SLICES[dtype] if slices is None else slices
    kept = definition.ranks_of(x_slices, len(w)) if ranks is None else ranks
    with composite(
        "sliced_dot_accumulate", acc, x, w_exponent, *w, x_slices=x_slices, w_slices=len(w), ranks=kept, columns=columns
    ):
        exponents = T.alloc_shared((x.shape[0],), "int32")
        cuts = [T.alloc_shared(x.shape, "int8") for _ in range(x_slices)]
        dot = T.alloc_fragment(acc.shape, "int32")
        total = T.alloc_fragment(acc.shape, "float32")
        cut(x, dtype, cuts, exponents)
        join_products(cuts, w, dot, total, ranks=kept)
        for i, j in T.Parallel(acc.shape[0], acc.shape[1]):
            acc[i, j] = acc[i, j] + scaled(total[i, j], exponents[i], w_exponent[j], unit_of(cuts, w, kept))
