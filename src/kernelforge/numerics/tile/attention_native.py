"""Attention over shared entries in native mode, as TileLang macros: bfloat16 products on the device's own matrix unit.

States are those of ``attention.py``, and are merged and finished by its macros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ...formats.tile import bf16, integer
from ..attention import CHUNK, WEIGHT_ONE
from .attention import INVISIBLE, float_of, limit, load_entries, merge_factors, open_chunk
from .composite import composite
from .elementary import exp2
from .rounded_dot import rounded_dot
from .scalar import bits_of, not_finite

LANES = 8
"""Neighbours that share a row's maximum and sum."""


@T.macro
def attention_chunk_native(
    m: Any,
    l: Any,  # noqa: E741
    o: Sequence[Any],
    q: Any,
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

    Probabilities are rounded to bfloat16, and the denominator adds the rounded ones. A NaN or an infinity among a
    head's scores makes its result NaN.

    Args:
        m, l, o, kv, entries, segment, rows, factor, factor_bits, fresh: as for ``attention_chunk``.
        q: uint16 [heads, D], bits of bfloat16, in shared memory.
        block_E: entries multiplied at a time for the scores; divides 128, at least 16.
    """
    with composite(
        "attention_chunk_native",
        m,
        l,
        q,
        kv,
        entries,
        segment,
        rows,
        *o,
        factor=factor_bits,
        fresh=int(fresh),
    ):
        chunk = open_chunk(m, l, o, fresh)
        heads, width = q.shape
        block_D = o[0].shape[1]
        keys = T.alloc_shared((block_E, width), "uint16")
        p = T.alloc_shared((heads, CHUNK), "uint16")
        partial = T.alloc_shared((heads, LANES), "float32")
        products = T.alloc_fragment((heads, block_E), "float32")
        for part in T.serial(CHUNK // block_E):
            load_entries(keys, kv, entries, segment, rows, part * block_E, 0)
            rounded_dot(q, keys, products, True)
            for i, j in T.Parallel(heads, block_E):
                chunk.scores[i, part * block_E + j] = T.if_then_else(
                    rows[part * block_E + j] < 0, T.float32(INVISIBLE), products[i, j] * T.float32(factor)
                )
        for i, lane in T.Parallel(heads, LANES):
            largest = T.alloc_var("float32")
            largest = chunk.scores[i, lane]
            for j in T.serial(CHUNK // LANES):
                largest = larger_or_nan(largest, chunk.scores[i, j * LANES + lane])
            partial[i, lane] = largest
        for i in T.Parallel(heads):
            largest = T.alloc_var("float32")
            largest = partial[i, 0]
            for lane in T.serial(LANES):
                largest = larger_or_nan(largest, partial[i, lane])
            chunk.m[i] = float_of(T.if_then_else(not_finite(largest), 0, bits_of(largest)))
            chunk.l[i] = float_of(T.if_then_else(not_finite(largest), integer.FLOAT32_NAN, 0))
        for i, lane in T.Parallel(heads, LANES):
            total = T.alloc_var("float32")
            total = T.float32(0)
            for j in T.serial(CHUNK // LANES):
                weight = T.alloc_var("float32")
                weight = exp2(chunk.scores[i, j * LANES + lane] - chunk.m[i]) * T.float32(WEIGHT_ONE)
                code = T.alloc_var("int32")
                code = bf16.encode(bits_of(weight))
                p[i, j * LANES + lane] = T.cast(code, "uint16")
                total = total + float_of(bf16.float32_bits(code))
            partial[i, lane] = total
        for i in T.Parallel(heads):
            total = T.alloc_var("float32")
            total = chunk.l[i]
            for lane in T.serial(LANES):
                total = total + partial[i, lane]
            chunk.l[i] = total
        merge_factors(m, l, chunk.m, chunk.l, chunk.kept, chunk.added)
        values = T.alloc_shared((CHUNK, block_D), "uint16")
        sums = T.alloc_fragment((heads, block_D), "float32")
        for block, tile in enumerate(o):
            load_entries(values, kv, entries, segment, rows, 0, block * block_D)
            rounded_dot(p, values, sums, False)
            for i, d in T.Parallel(heads, block_D):
                tile[i, d] = limit(tile[i, d] * chunk.kept[i]) + limit(sums[i, d] * chunk.added[i])


@T.macro
def larger_or_nan(x: Any, y: Any) -> Any:
    """The larger of two; one that is not finite, if either is."""
    result = T.alloc_var("float32")
    result = T.if_then_else(not_finite(x), x, T.if_then_else(not_finite(y), y, T.if_then_else(y > x, y, x)))
    return result
