"""Gradients of the logits as TileLang kernels: of queries and weights, query by query; of keys, tile by tile.

Both go through dots as the forward pass computes them, for where relu lets gradients through. The sums over entries and
heads are exact dots of contract C4 on the values of keys and queries, bfloat16 also where the dots are FP4.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tilelang.language as T

from ...numerics.tile import row_sum
from ...numerics.tile.scalar import STORAGE, read, stored, value
from ...numerics.tile.sliced_dot import SLICES, cut, sliced_dot
from ...numerics.window import CHUNK
from . import tile

FIRST_ENTRY, SEEN, FIRST_LOGIT, QUERY_COLUMNS = range(4)
"""Columns of ``queries``, a row a query: the row of ``K`` of its sequence's entry 0, how many entries it sees, and
where its gradients begin."""

TILE_ENTRY, TILE_BEGIN, TILE_END, TILE_QUERY, TILE_COLUMNS = range(5)
"""Columns of ``tiles``: the row of ``K`` of the sequence's entry 0, the entries [begin, end) of the sequence that end
with it, and the sequence's first query."""


@T.macro
def _passes(dot):
    """Whether relu lets a gradient through: the dot is positive or NaN."""
    bits = T.alloc_var("int32")
    bits = T.reinterpret(tile.relu(dot), "int32")
    return bits != 0


@T.macro
def _load_columns(values, source, first, count, column):
    """values[d, i] = source[first + i, column + d]; 0 from row ``count`` of the tile."""
    for d, i in T.Parallel(values.shape[0], values.shape[1]):
        values[d, i] = T.cast(0, "uint16")
        if i < count:
            values[d, i] = source[first + i, column + d]


@T.macro
def _add(total, part):
    for i, j in T.Parallel(total.shape[0], total.shape[1]):
        total[i, j] = total[i, j] + part[i, j]


@T.macro
def _add_weighted(total, part, weight, count):
    for i, j in T.Parallel(total.shape[0], total.shape[1]):
        if i < count:
            total[i, j] = total[i, j] + tile.product(weight[i], part[i, j])


@T.macro
def _store_weighted(out, weights, row, head, heads, total, column):
    for c, d in T.Parallel(total.shape[0], total.shape[1]):
        if head + c < heads:
            weight = read(weights[row, head + c])
            out[row * heads + head + c, column + d] = stored(tile.product(weight, total[c, d]), "bfloat16")


@T.macro
def _store_entries(out, first, count, total, column):
    for t, d in T.Parallel(total.shape[0], total.shape[1]):
        if t < count:
            out[first + t, column + d] = stored(total[t, d], "bfloat16")


@T.macro
def _clear(slice_tile):
    for i, j in T.Parallel(slice_tile.shape[0], slice_tile.shape[1]):
        slice_tile[i, j] = T.cast(0, "int8")


@T.macro
def _copy_element(target, i, j, source, at):
    target[i, j] = source[0, at]


def _clear_all(slices):
    for one in slices:
        _clear(one)


def _copy_elements(targets, i, j, sources, at):
    """Element ``at`` of a row's slices becomes element [i, j] of a matrix's."""
    for target, source in zip(targets, sources, strict=True):
        _copy_element(target, i, j, source, at)


@T.macro
def _clear_total(total):
    T.clear(total)


class _Columns(NamedTuple):
    """Tiles of the product with values of D channels, some channels at a time.

    Attributes:
        totals: float32 fragments [m, width], one for every ``width`` channels.
        part: float32 [m, width].
        values: uint16 [width, L], columns of queries or keys.
        slices, exponent: of ``values``.
    """

    totals: Sequence[Any]
    part: Any
    values: Any
    slices: Sequence[Any]
    exponent: Any


def _allocate_columns(D, block_D, rows, length):
    width = math.gcd(D, block_D)
    return _Columns(
        [T.alloc_fragment((rows, width), "float32") for _ in range(D // width)],
        T.alloc_shared((rows, width), "float32"),
        T.alloc_shared((width, length), "uint16"),
        [T.alloc_shared((width, length), "int8") for _ in range(2)],
        T.alloc_shared((width,), "int32"),
    )


def _clear_totals(columns):
    for total in columns.totals:
        _clear_total(total)


def _store_queries(columns, out, weights, row, head, heads):
    for number, total in enumerate(columns.totals):
        _store_weighted(out, weights, row, head, heads, total, number * total.shape[1])


def _store_keys(columns, out, first, count):
    for number, total in enumerate(columns.totals):
        _store_entries(out, first, count, total, number * total.shape[1])


def _multiply(columns, a, a_exponent, source, first, count, weight=None, rows=None):
    """totals += ``a`` times ``count`` rows of ``source`` from ``first``; its first ``rows`` rows times ``weight``."""
    for number, total in enumerate(columns.totals):
        _load_columns(columns.values, source, first, count, number * total.shape[1])
        cut(columns.values, "bfloat16", columns.slices, columns.exponent)
        sliced_dot(a, a_exponent, columns.slices, columns.exponent, columns.part)
        if weight is None:
            _add(total, columns.part)
        else:
            _add_weighted(total, columns.part, weight, rows)


def query_gradient(H, D, qk_format, dtype, block_H, block_T, block_D, threads):
    """dq[row * H + h] and dweights[row, h].

    Args:
        H, D, qk_format: as in :func:`kernelforge.ops.lightning_indexer.kernel.lightning_indexer`.
        dtype: of the logits' gradients: "bfloat16" | "float32".
        block_H, block_T, block_D, threads: schedule; never changes a bit. A block takes ``block_H`` heads of a query, a
            multiple of 16, or all if they are fewer; ``block_T`` is a multiple of 32 that divides 128; as many channels
            as divide D and ``block_D``, a multiple of 32, are multiplied at a time.
    """
    rows, heads, entries, chunks, cells = (T.dynamic(n) for n in ("rows", "heads", "entries", "chunks", "cells"))
    columns = tile.padded(min(H, block_H), tile.COLUMNS)
    packed, (width, scales) = tile.STORAGE[qk_format], tile.widths(D, qk_format)
    query_scales, key_scales = (1, 1) if qk_format == "bf16" else (heads, entries)
    slices = SLICES[dtype]

    @T.prim_func
    def main(
        Q: T.Tensor((heads, width), packed),
        Q_scale: T.Tensor((query_scales, scales), "uint8"),
        K: T.Tensor((entries, width), packed),
        K_scale: T.Tensor((key_scales, scales), "uint8"),
        K_value: T.Tensor((entries, D), "uint16"),
        weights: T.Tensor((rows, H), "float32"),
        grad: T.Tensor((cells,), STORAGE[dtype]),
        queries: T.Tensor((rows, QUERY_COLUMNS), "int32"),
        starts: T.Tensor((chunks,), "int32"),
        dq: T.Tensor((heads, D), "uint16"),
        dweights: T.Tensor((rows, H), "float32"),
    ):
        with T.Kernel(T.ceildiv(H, columns), rows, threads=threads) as (group, row):
            q = tile.allocate_rows(columns, D, qk_format)
            k = tile.allocate_rows(block_T, D, qk_format)
            dots = tile.allocate_dots(q, k)
            g = T.alloc_shared((1, CHUNK), STORAGE[dtype])
            g_slices = [T.alloc_shared((1, CHUNK), "int8") for _ in range(slices)]
            g_exponent = T.alloc_shared((1,), "int32")
            a = [T.alloc_shared((columns, CHUNK), "int8") for _ in range(slices)]
            a_exponent = T.alloc_shared((columns,), "int32")
            values = _allocate_columns(D, block_D, columns, CHUNK)
            products = T.alloc_shared((columns, block_T), "float32")
            lanes = T.alloc_shared((columns, row_sum.LANES), "float32")
            sums = T.alloc_shared((columns,), "float32")
            head = T.alloc_var("int32")
            first = T.alloc_var("int32")
            seen = T.alloc_var("int32")
            begin = T.alloc_var("int32")
            entry = T.alloc_var("int32")
            count = T.alloc_var("int32")
            seen = queries[row, SEEN]
            head = group * columns
            tile.load_rows(q, Q, Q_scale, row * H + head)
            row_sum.clear_lanes(lanes)
            _clear_totals(values)
            for i in T.serial(chunks):
                first = starts[i]
                if first < seen:
                    for _, t in T.Parallel(1, CHUNK):
                        g[0, t] = T.cast(0, STORAGE[dtype])
                        if first + t < seen:
                            g[0, t] = grad[queries[row, FIRST_LOGIT] + first + t]
                    cut(g, dtype, g_slices, g_exponent)
                    for c in T.Parallel(columns):
                        a_exponent[c] = g_exponent[0]
                    _clear_all(a)
                    for j in T.serial(CHUNK // block_T):
                        begin = j * block_T
                        if first + begin < seen:
                            tile.load_rows(k, K, K_scale, queries[row, FIRST_ENTRY] + first + begin)
                            tile.dots(dots, q, k)
                            for c, t in T.Parallel(columns, block_T):
                                products[c, t] = T.float32(0)
                                if first + begin + t < seen:
                                    products[c, t] = tile.product(value(g[0, begin + t], dtype), tile.relu(dots[t, c]))
                                    if _passes(dots[t, c]):
                                        _copy_elements(a, c, begin + t, g_slices, begin + t)
                            row_sum.accumulate_lanes(lanes, products)
                    entry = queries[row, FIRST_ENTRY] + first
                    count = seen - first
                    _multiply(values, a, a_exponent, K_value, entry, count)
            row_sum.join_lanes(lanes, sums)
            _store_queries(values, dq, weights, row, head, H)
            for c in T.Parallel(columns):
                if head + c < H:
                    dweights[row, head + c] = sums[c]

    return main


def entry_gradient(H, D, qk_format, dtype, block_T, block_D, threads):
    """dk of a tile of entries, summed over the queries of their sequence, ascending.

    Args:
        H: at most 512, the heads under one exponent (contract C4).
        D, qk_format, dtype, block_D, threads: as in :func:`query_gradient`.
        block_T: entries of a tile, a multiple of 16; never changes a bit.
    """
    rows, heads, entries, items, steps, cells = (
        T.dynamic(n) for n in ("rows", "heads", "entries", "items", "steps", "cells")
    )
    columns, depth = tile.padded(H, tile.COLUMNS), tile.padded(H, tile.BLOCK)
    packed, (width, scales) = tile.STORAGE[qk_format], tile.widths(D, qk_format)
    query_scales, key_scales = (1, 1) if qk_format == "bf16" else (heads, entries)

    @T.prim_func
    def main(
        Q: T.Tensor((heads, width), packed),
        Q_scale: T.Tensor((query_scales, scales), "uint8"),
        K: T.Tensor((entries, width), packed),
        K_scale: T.Tensor((key_scales, scales), "uint8"),
        Q_value: T.Tensor((heads, D), "uint16"),
        weights: T.Tensor((rows, H), "float32"),
        grad: T.Tensor((cells,), STORAGE[dtype]),
        queries: T.Tensor((rows, QUERY_COLUMNS), "int32"),
        tiles: T.Tensor((items, TILE_COLUMNS), "int32"),
        order: T.Tensor((steps,), "int32"),
        dk: T.Tensor((entries, D), "uint16"),
    ):
        with T.Kernel(items, threads=threads) as item:
            q = tile.allocate_rows(columns, D, qk_format)
            k = tile.allocate_rows(block_T, D, qk_format)
            dots = tile.allocate_dots(q, k)
            w = T.alloc_shared((1, depth), "float32")
            w_slices = [T.alloc_shared((1, depth), "int8") for _ in range(3)]
            w_exponent = T.alloc_shared((1,), "int32")
            a = [T.alloc_shared((block_T, depth), "int8") for _ in range(3)]
            a_exponent = T.alloc_shared((block_T,), "int32")
            values = _allocate_columns(D, block_D, block_T, depth)
            g = T.alloc_shared((block_T,), "float32")
            first = T.alloc_var("int32")
            count = T.alloc_var("int32")
            row = T.alloc_var("int32")
            seen = T.alloc_var("int32")
            tile.load_rows(k, K, K_scale, tiles[item, TILE_ENTRY] + tiles[item, TILE_BEGIN])
            _clear_totals(values)
            count = H
            for i in T.serial(steps):
                row = tiles[item, TILE_QUERY] + order[i]
                seen = queries[row, SEEN] - tiles[item, TILE_BEGIN]
                if seen > 0:
                    for t in T.Parallel(block_T):
                        g[t] = T.float32(0)
                        if t < seen:
                            g[t] = value(grad[queries[row, FIRST_LOGIT] + tiles[item, TILE_BEGIN] + t], dtype)
                    for _, h in T.Parallel(1, depth):
                        w[0, h] = T.float32(0)
                        if h < H:
                            w[0, h] = weights[row, h]
                    cut(w, "float32", w_slices, w_exponent)
                    tile.load_rows(q, Q, Q_scale, row * H)
                    tile.dots(dots, q, k)
                    for t in T.Parallel(block_T):
                        a_exponent[t] = w_exponent[0]
                    _clear_all(a)
                    for t, h in T.Parallel(block_T, H):
                        if _passes(dots[t, h]):
                            _copy_elements(a, t, h, w_slices, h)
                    first = row * H
                    _multiply(values, a, a_exponent, Q_value, first, count, g, seen)
            first = tiles[item, TILE_ENTRY] + tiles[item, TILE_BEGIN]
            count = tiles[item, TILE_END] - tiles[item, TILE_BEGIN]
            _store_keys(values, dk, first, count)

    return main
