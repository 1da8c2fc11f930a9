"""Scores of a tile of entries: queries and keys as they are stored, FP4 or bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tilelang.language as T

from ...formats.tile import e2m1, e8m0, integer
from ...numerics.tile.attention import cut_rows
from ...numerics.tile.composite import composite
from ...numerics.tile.mx_block import mx_block_accumulate
from ...numerics.tile.rounded_dot import rounded_dot
from ...numerics.tile.row_sum import row_sum
from ...numerics.tile.sliced_dot import sliced_dot

COLUMNS = 16
"""Rows and columns of a matrix unit's operands come in multiples of it."""

BLOCK = 32
SMALLEST_PRODUCT = 27 << 23
"""float32 bits of 2^-100."""

STORAGE = {"e2m1": "uint8", "bf16": "uint16"}
"""Elements of queries and keys in memory, by their format: packed E2M1, or bfloat16 bits."""


def padded(extent: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that holds ``extent``."""
    return (extent + multiple - 1) // multiple * multiple


def widths(D: int, qk_format: str) -> tuple[int, int]:
    """Columns of rows of D elements in memory, and of their scales; bfloat16 has one of these that nothing reads."""
    return (D, 1) if qk_format == "bf16" else (D // 2, D // BLOCK)


class Rows(NamedTuple):
    """Tiles of queries or keys in shared memory.

    Attributes:
        stored: [n, D / 2] packed E2M1, or [n, D] bfloat16 bits.
        scale: [n, D / 32] E8M0 bytes; None for bfloat16.
        slices, exponent: of bfloat16 rows, contract C4: two int8 [n, D] and int32 [n]; none for FP4.
        values: in native mode the rows as bfloat16 bits, uint16 [n, D], and no slices; else None.
    """

    stored: Any
    scale: Any
    slices: Sequence[Any]
    exponent: Any
    values: Any


def allocate_rows(rows: int, D: int, qk_format: str, native: bool = False) -> Rows:
    """Tiles of ``rows`` queries or keys of D elements, for exact products or those of native mode."""
    width, scales = widths(D, qk_format)
    stored = T.alloc_shared((rows, width), STORAGE[qk_format])
    values = T.alloc_shared((rows, D), "uint16") if native else None
    if qk_format == "e2m1":
        return Rows(stored, T.alloc_shared((rows, scales), "uint8"), (), None, values)
    if native:
        return Rows(stored, None, (), None, values)
    slices = [T.alloc_shared((rows, D), "int8") for _ in range(2)]
    return Rows(stored, None, slices, T.alloc_shared((rows,), "int32"), None)


@T.macro
def _read_values(rows: Rows) -> None:
    """``values`` of what is stored; E2M1 times its scale is a bfloat16 number."""
    if rows.scale is None:
        for i, d in T.Parallel(rows.values.shape[0], rows.values.shape[1]):
            rows.values[i, d] = rows.stored[i, d]
    else:
        with composite("mx_values", rows.values, rows.stored, rows.scale):
            for i, pair in T.Parallel(rows.stored.shape[0], rows.stored.shape[1]):
                byte = T.alloc_var("int32")
                byte = T.cast(rows.stored[i, pair], "int32")
                scale = T.alloc_var("float32")
                scale = e8m0.read_scale(T.cast(rows.scale[i, pair // (BLOCK // 2)], "int32")) * T.float32(0.5)
                low = T.alloc_var("float32")
                low = T.cast(e2m1.doubled(e2m1.low(byte)), "float32") * scale
                high = T.alloc_var("float32")
                high = T.cast(e2m1.doubled(e2m1.high(byte)), "float32") * scale
                rows.values[i, 2 * pair] = T.cast((T.reinterpret(low, "int32") >> 16) & 0xFFFF, "uint16")
                rows.values[i, 2 * pair + 1] = T.cast((T.reinterpret(high, "int32") >> 16) & 0xFFFF, "uint16")


@T.macro
def load_rows(rows: Rows, source: Any, source_scale: Any, first: Any) -> None:
    """Rows from ``first`` of queries or keys in memory; ``source_scale`` is not read for bfloat16."""
    row = T.alloc_var("int32")
    row = first
    T.copy(source[row, 0], rows.stored)
    if rows.scale is not None:
        T.copy(source_scale[row, 0], rows.scale)
    if rows.values is not None:
        _read_values(rows)
    elif rows.scale is None:
        cut_rows(rows.stored, rows.slices[0], rows.slices[1], rows.exponent)


@T.macro
def relu(dot: Any) -> Any:
    """The dot if it is positive or NaN, else +0."""
    bits = T.alloc_var("int32")
    bits = T.reinterpret(dot, "int32")
    nan = (bits & integer.MAGNITUDE) > integer.FLOAT32_INFINITY
    result = T.alloc_var("float32")
    result = T.reinterpret(T.if_then_else(nan, integer.FLOAT32_NAN, T.max(bits, 0)), "float32")
    return result


@T.macro
def product(x: Any, y: Any) -> Any:
    """fl(x * y), +0 below 2^-100 in magnitude."""
    result = T.alloc_var("float32")
    result = x * y
    bits = T.alloc_var("int32")
    bits = T.reinterpret(result, "int32")
    result = T.reinterpret(T.if_then_else((bits & integer.MAGNITUDE) < SMALLEST_PRODUCT, 0, bits), "float32")
    return result


@T.macro
def _weighted(dot: Any, weight: Any) -> Any:
    """read(weight) * relu(dot); float32."""
    positive = T.alloc_var("float32")
    positive = relu(dot)
    bits = T.alloc_var("int32")
    bits = integer.read_bits(T.reinterpret(weight, "int32"))
    factor = T.alloc_var("float32")
    factor = T.reinterpret(bits, "float32")
    result = T.alloc_var("float32")
    result = product(factor, positive)
    return result


@T.macro
def _dots_fp4(acc: Any, q: Rows, k: Rows) -> None:
    T.clear(acc)
    mx_block_accumulate(acc, k.stored, k.scale, q.stored, q.scale, "e2m1", k.scale.shape[1])


@T.macro
def dots(acc: Any, q: Rows, k: Rows) -> None:
    """acc[t, c] = row c of the queries times row t of the keys; a tile of :func:`allocate_dots`."""
    if q.values is not None:
        rounded_dot(k.values, q.values, acc, True)
    elif q.scale is not None:
        _dots_fp4(acc, q, k)
    else:
        sliced_dot(k.slices, k.exponent, q.slices, q.exponent, acc)


def allocate_dots(q: Rows, k: Rows) -> Any:
    """A float32 tile for :func:`dots`. Queries are its columns, so that a head sum runs along a row."""
    shape = (k.stored.shape[0], q.stored.shape[0])
    exact_bf16 = q.scale is None and q.values is None
    return T.alloc_shared(shape, "float32") if exact_bf16 else T.alloc_fragment(shape, "float32")


@T.macro
def _sums(scores: Any, acc: Any, weights: Any, heads: int) -> None:
    """scores[s, t] = R(H) of the weighted columns of query s in row t of ``acc``."""
    queries, entries = scores.shape
    products = T.alloc_shared((entries * queries, heads), "float32")
    sums = T.alloc_shared((entries * queries,), "float32")
    for t, c in T.Parallel(entries, queries * heads):
        products[t * queries + c // heads, c % heads] = _weighted(acc[t, c], weights[c // heads, c % heads])
    row_sum(products, sums)
    for s, t in T.Parallel(queries, entries):
        scores[s, t] = sums[t * queries + s]


@T.macro
def indexer_scores(scores: Any, q: Rows, k: Rows, weights: Any, visible: Any, heads: int) -> None:
    """scores[s, t] = R(H) over heads of weights[s, h] * relu(q[s * H + h] . k[t]).

    Args:
        scores: float32 [S, T] tile in shared memory; anything where t >= visible[s].
        q: at least S * H rows.
        k: T rows.
        weights: float32 [S, H] tile.
        visible: int32 [S] tile, entries of the tile that a query sees.
        heads: H.
    """
    if q.scale is not None:
        with composite("indexer_scores", scores, q.stored, q.scale, k.stored, k.scale, weights, visible, heads=heads):
            acc = allocate_dots(q, k)
            dots(acc, q, k)
            _sums(scores, acc, weights, heads)
    else:
        wide_acc = allocate_dots(q, k)
        dots(wide_acc, q, k)
        _sums(scores, wide_acc, weights, heads)
