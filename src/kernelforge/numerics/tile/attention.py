"""Attention over shared key-value entries (contract C5) as TileLang macros; the twins of ``numerics/attention.py``.

A state is ``m`` and ``l`` (float32 [heads], shared memory) and ``o``, a list of float32 tiles [heads, D / len(o)] side
by side. ``attention_chunk`` is one region, so that a backend which takes it whole cuts, multiplies and merges without
leaving its registers; the portable body needs nothing but int8 dots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tilelang.language as T

from ...formats.tile import bf16, integer
from ...formats.tile import window as windows
from ..attention import CHUNK, LEAST_EXPONENT, WEIGHT_ONE
from .composite import composite
from .elementary import exp2, recip
from .scalar import bits_of, read

SMALLEST_RESULT = 27 << 23
"""float32 bits of 2^-100."""

INVISIBLE = -(2.0**126)
"""Score of an entry that is not seen: its weight is exactly 0."""

LARGEST_SCORE = 2.0**100
LOG2_E = 0x3FB8AA3B
EMPTY = -(2.0**120)
"""``m`` of a state without an entry or a sink: the first chunk replaces it."""


def float_of(bits: Any) -> Any:
    """The float32 with these bits."""
    return T.reinterpret(bits, "float32")


@T.macro
def limit(x: Any) -> Any:
    """x, or +0 where its magnitude is below 2^-100."""
    bits = T.alloc_var("int32")
    bits = bits_of(x)
    result = T.alloc_var("float32")
    result = float_of(T.if_then_else((bits & integer.MAGNITUDE) < SMALLEST_RESULT, 0, bits))
    return result


@T.macro
def clamp_score(x: Any) -> Any:
    """A score as it enters the maximum: at most 2^100 in magnitude, +0 below 2^-50."""
    low = T.alloc_var("float32")
    low = T.if_then_else(x < T.float32(-LARGEST_SCORE), T.float32(-LARGEST_SCORE), x)
    high = T.alloc_var("float32")
    high = T.if_then_else(low > T.float32(LARGEST_SCORE), T.float32(LARGEST_SCORE), low)
    return read(high)


@T.macro
def scale_by_power_of_two(x: Any, places: Any) -> Any:
    """x * 2^places: +0 below 2^-100, infinite beyond the range; x is 0 or at least 1 in magnitude."""
    bits = T.alloc_var("int32")
    bits = bits_of(x)
    field = T.alloc_var("int32")
    field = ((bits & integer.MAGNITUDE) >> 23) + places
    sign = bits & T.int32(-0x80000000)
    scaled = T.alloc_var("int32")
    scaled = T.if_then_else(field > 254, sign | integer.FLOAT32_INFINITY, bits + (places << 23))
    scaled = T.if_then_else(((bits & integer.MAGNITUDE) == 0) | (field < (SMALLEST_RESULT >> 23)), 0, scaled)
    result = T.alloc_var("float32")
    result = float_of(scaled)
    return result


@T.macro
def joined(high: Any, cross: Any, low: Any) -> Any:
    """The three exact sums of a sliced dot as one float32."""
    total = T.alloc_var("float32")
    total = T.cast(high, "float32") * T.float32(65536) + T.cast(cross, "float32") * T.float32(256)
    total = total + T.cast(low, "float32")
    return total


@T.macro
def cut_rows(x: Any, high: Any, low: Any, exponent: Any) -> None:
    """Slices and exponents of rows of bfloat16 bits.

    Args:
        x: uint16 [n, D].
        high, low: int8 [n, D].
        exponent: int32 [n]: of C4, -49 for a row of zeros, 255 (and slices of 0) for one with a NaN or an infinity.
    """
    with composite("cut_rows", x, high, low, exponent):
        for i in T.Parallel(x.shape[0]):
            amax = T.alloc_var("int32")
            amax = 0
            for k in T.serial(x.shape[1]):
                amax = T.max(amax, bf16.magnitude(T.cast(x[i, k], "int32")))
            exponent[i] = T.if_then_else(amax < bf16.SMALLEST_READ, LEAST_EXPONENT, windows.exponent_bf16(amax))
        for i, k in T.Parallel(x.shape[0], x.shape[1]):
            q = T.alloc_var("int32")
            q = windows.window_bf16(T.cast(x[i, k], "int32"), exponent[i])
            high[i, k] = T.cast(windows.high(q), "int8")
            low[i, k] = T.cast(windows.low(q), "int8")


@T.macro
def start(m: Any, l: Any, o: Sequence[Any], sink: Any) -> None:  # noqa: E741
    """The state of the sink alone; ``sink`` float32 [heads] in shared memory."""
    for i in T.Parallel(m.shape[0]):
        stored = T.alloc_var("int32")
        stored = bits_of(sink[i])
        unusable = (stored & integer.MAGNITUDE) > integer.FLOAT32_INFINITY
        value = T.alloc_var("float32")
        value = read(float_of(T.if_then_else(unusable, 0, stored))) * float_of(T.int32(LOG2_E))
        m[i] = clamp_score(value)
        l[i] = float_of(T.if_then_else(unusable, integer.FLOAT32_NAN, bits_of(T.float32(WEIGHT_ONE))))
    for tile in o:
        T.clear(tile)


@T.macro
def start_empty(m: Any, l: Any, o: Sequence[Any]) -> None:  # noqa: E741
    """The state of nothing at all."""
    for i in T.Parallel(m.shape[0]):
        m[i] = T.float32(EMPTY)
        l[i] = T.float32(0)
    for tile in o:
        T.clear(tile)


@T.macro
def entry_element(kv: Any, entries: Any, segment: Any, row: Any, k: Any) -> Any:
    """Element k of an entry: of ``kv`` where segment[0] is 0, else of ``entries``; 0 where ``row`` is negative."""
    at = T.alloc_var("int32")
    at = row
    code = T.alloc_var("int32")
    code = 0
    if at >= 0:
        code = T.cast(kv[at, k], "int32") if segment[0] == 0 else T.cast(entries[at, k], "int32")
    return code


@T.macro
def load_entries(tile: Any, kv: Any, entries: Any, segment: Any, rows: Any, first: Any, column: int) -> None:
    """tile[j, k] = element ``column`` + k of the entry ``rows[first + j]``, as :func:`entry_element` reads it."""
    for j, k in T.Parallel(tile.shape[0], tile.shape[1]):
        tile[j, k] = T.cast(entry_element(kv, entries, segment, rows[first + j], column + k), "uint16")


class Chunk(NamedTuple):
    """What a chunk's scores become, in shared memory.

    Attributes:
        scores: float32 [heads, 128].
        m, l: float32 [heads]: the chunk's maximum and denominator.
        kept, added: float32 [heads]: what the numerators before and the chunk's are multiplied by.
    """

    scores: Any
    m: Any
    l: Any  # noqa: E741
    kept: Any
    added: Any


def open_chunk(m: Any, l: Any, o: Sequence[Any], fresh: bool) -> Chunk:  # noqa: E741
    """Tiles for a chunk's contribution to a state, which is emptied first if it is ``fresh``."""
    if fresh:
        start_empty(m, l, o)
    heads = m.shape[0]
    scores = T.alloc_shared((heads, CHUNK), "float32")
    return Chunk(scores, *(T.alloc_shared((heads,), "float32") for _ in range(4)))


@T.macro
def largest_scores(scores: Any, m: Any) -> None:
    """m[i] = the largest of scores[i, :]."""
    for i in T.Parallel(scores.shape[0]):
        top = T.alloc_var("float32")
        top = scores[i, 0]
        for j in T.serial(scores.shape[1]):
            top = T.if_then_else(scores[i, j] > top, scores[i, j], top)
        m[i] = top


@T.macro
def merge_factors(m: Any, l: Any, other_m: Any, other_l: Any, kept: Any, added: Any) -> None:  # noqa: E741
    """``m`` and ``l`` with another state's; what both numerators are multiplied by goes to ``kept`` and ``added``."""
    for i in T.Parallel(m.shape[0]):
        ours = T.alloc_var("float32")
        ours = m[i]
        theirs = T.alloc_var("float32")
        theirs = other_m[i]
        top = T.alloc_var("float32")
        top = T.if_then_else(theirs > ours, theirs, ours)
        a = T.alloc_var("float32")
        a = exp2(ours - top)
        b = T.alloc_var("float32")
        b = exp2(theirs - top)
        m[i] = top
        l[i] = limit(l[i] * a) + limit(other_l[i] * b)
        kept[i] = a
        added[i] = b


@T.macro
def attention_chunk(
    m: Any,
    l: Any,  # noqa: E741
    o: Sequence[Any],
    q_high: Any,
    q_low: Any,
    q_exponent: Any,
    kv: Any,
    entries: Any,
    segment: Any,
    rows: Any,
    factor: float,
    factor_bits: int,
    block_E: int,
    fresh: bool,
) -> None:
    """The state with the contribution of one chunk of entries.

    Args:
        m, l, o: the state.
        q_high, q_low, q_exponent: int8 [heads, D], int32 [heads] from :func:`cut_rows`.
        kv, entries: uint16 [.., D] in global memory.
        segment: int32 [1]: 0 to read rows of ``kv``, 1 of ``entries``.
        rows: int32 [128]: the entries in their order, negative where the chunk has none; at least one is not.
        factor, factor_bits: what scores are multiplied by, and its bits.
        block_E: entries cut at a time for the scores; divides 128, at least 16.
        fresh: the state before is empty, whatever ``m``, ``l`` and ``o`` hold.
    """
    with composite(
        "attention_chunk",
        m,
        l,
        q_high,
        q_low,
        q_exponent,
        kv,
        entries,
        segment,
        rows,
        *o,
        factor=factor_bits,
        fresh=int(fresh),
    ):
        chunk = open_chunk(m, l, o, fresh)
        heads, width = q_high.shape
        block_D = o[0].shape[1]
        raw = T.alloc_shared((block_E, width), "uint16")
        k_high = T.alloc_shared((block_E, width), "int8")
        k_low = T.alloc_shared((block_E, width), "int8")
        k_exponent = T.alloc_shared((block_E,), "int32")
        exponent = T.alloc_shared((CHUNK,), "int32")
        weights = T.alloc_shared((heads, CHUNK), "int16")
        p_high = T.alloc_shared((heads, CHUNK), "int8")
        p_low = T.alloc_shared((heads, CHUNK), "int8")
        largest = T.alloc_shared((1,), "int32")
        high = T.alloc_fragment((heads, block_E), "int32")
        cross = T.alloc_fragment((heads, block_E), "int32")
        low = T.alloc_fragment((heads, block_E), "int32")
        for part in T.serial(CHUNK // block_E):
            load_entries(raw, kv, entries, segment, rows, part * block_E, 0)
            cut_rows(raw, k_high, k_low, k_exponent)
            T.gemm(q_high, k_high, high, transpose_B=True, clear_accum=True)
            T.gemm(q_high, k_low, cross, transpose_B=True, clear_accum=True)
            T.gemm(q_low, k_high, cross, transpose_B=True)
            T.gemm(q_low, k_low, low, transpose_B=True, clear_accum=True)
            for i, j in T.Parallel(heads, block_E):
                score = T.alloc_var("float32")
                score = joined(high[i, j], cross[i, j], low[i, j])
                score = scale_by_power_of_two(score, q_exponent[i] + k_exponent[j] - 30) * T.float32(factor)
                score = clamp_score(score)
                chunk.scores[i, part * block_E + j] = T.if_then_else(
                    rows[part * block_E + j] < 0, T.float32(INVISIBLE), score
                )
            for j in T.Parallel(block_E):
                exponent[part * block_E + j] = T.max(k_exponent[j], LEAST_EXPONENT)
        for i in T.Parallel(1):
            top = T.alloc_var("int32")
            top = LEAST_EXPONENT
            for j in T.serial(CHUNK):
                top = T.max(top, exponent[j])
            largest[i] = top
        largest_scores(chunk.scores, chunk.m)
        for i, j in T.Parallel(heads, CHUNK):
            weight = T.alloc_var("float32")
            weight = exp2(chunk.scores[i, j] - chunk.m[i]) * T.float32(WEIGHT_ONE)
            weights[i, j] = T.cast(_nearest(weight), "int16")
            places = T.alloc_var("int32")
            places = T.max(exponent[j] - largest[0], -30)
            aligned = T.alloc_var("int32")
            aligned = _nearest(weight * integer.power_of_two(places))
            p_high[i, j] = T.cast(windows.high(aligned), "int8")
            p_low[i, j] = T.cast(windows.low(aligned), "int8")
        for i in T.Parallel(heads):
            total = T.alloc_var("int32")
            total = 0
            for j in T.serial(CHUNK):
                total = total + T.cast(weights[i, j], "int32")
            unusable = (q_exponent[i] == windows.UNUSABLE) | (largest[0] == windows.UNUSABLE)
            chunk.l[i] = float_of(T.if_then_else(unusable, integer.FLOAT32_NAN, bits_of(T.cast(total, "float32"))))
        merge_factors(m, l, chunk.m, chunk.l, chunk.kept, chunk.added)
        v_high = T.alloc_shared((block_D, CHUNK), "int8")
        v_low = T.alloc_shared((block_D, CHUNK), "int8")
        o_high = T.alloc_fragment((heads, block_D), "int32")
        o_cross = T.alloc_fragment((heads, block_D), "int32")
        o_low = T.alloc_fragment((heads, block_D), "int32")
        for block, tile in enumerate(o):
            # Transposed: matrix units want both operands contiguous along the contraction.
            for d, j in T.Parallel(block_D, CHUNK):
                q = T.alloc_var("int32")
                q = windows.window_bf16(entry_element(kv, entries, segment, rows[j], block * block_D + d), exponent[j])
                v_high[d, j] = T.cast(windows.high(q), "int8")
                v_low[d, j] = T.cast(windows.low(q), "int8")
            T.gemm(p_high, v_high, o_high, transpose_B=True, clear_accum=True)
            T.gemm(p_high, v_low, o_cross, transpose_B=True, clear_accum=True)
            T.gemm(p_low, v_high, o_cross, transpose_B=True)
            T.gemm(p_low, v_low, o_low, transpose_B=True, clear_accum=True)
            for i, d in T.Parallel(heads, block_D):
                value = T.alloc_var("float32")
                value = joined(o_high[i, d], o_cross[i, d], o_low[i, d])
                value = scale_by_power_of_two(value, largest[0] - 15)
                tile[i, d] = limit(tile[i, d] * chunk.kept[i]) + limit(value * chunk.added[i])


def _nearest(x: Any) -> Any:
    """The integer nearest to 0 <= x <= 2^22, ties to even."""
    return bits_of(x + T.float32(12582912.0)) - 0x4B400000


@T.macro
def merge(m: Any, l: Any, o: Sequence[Any], other_m: Any, other_l: Any, other_o: Sequence[Any]) -> None:  # noqa: E741
    """The state with another one's contribution, that of later entries."""
    kept = T.alloc_shared((m.shape[0],), "float32")
    added = T.alloc_shared((m.shape[0],), "float32")
    merge_factors(m, l, other_m, other_l, kept, added)
    for tile, other in zip(o, other_o, strict=True):
        for i, d in T.Parallel(tile.shape[0], tile.shape[1]):
            tile[i, d] = limit(tile[i, d] * kept[i]) + limit(other[i, d] * added[i])


@T.macro
def finish(l: Any, o: Sequence[Any]) -> None:  # noqa: E741
    """``o`` becomes the output: numerators times the reciprocal of the denominator."""
    factor = T.alloc_shared((l.shape[0],), "float32")
    for i in T.Parallel(l.shape[0]):
        factor[i] = recip(l[i])
    for tile in o:
        for i, d in T.Parallel(tile.shape[0], tile.shape[1]):
            tile[i, d] = limit(tile[i, d] * factor[i])
