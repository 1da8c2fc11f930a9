"""Compressed attention in TileLang: one kernel for CSA and HCA, prefill and decode; and one split over the entries.

A block is one query and some of its heads: all heads share the entries, so they are the rows of every product.
"""

import struct

import tilelang.language as T

from ...formats.tile import bf16
from ...numerics.attention import CHUNK, window_slots
from ...numerics.tile.attention import (
    EMPTY,
    attention_chunk,
    cut_rows,
    finish,
    limit,
    merge,
    start,
)
from ...numerics.tile.attention_native import attention_chunk_native
from ...numerics.tile.scalar import bits_of, read

SIZES = 4
"""Values of ``sizes``: queries and raw entries of a batch row, compressed entries a row may have, pages of a row."""


def _chunk_finder(window, ratio, topk, page):
    """The macro that lists a chunk's entries.

    Slots below ``window_slots(window)`` are the window's chunks; compressed entries follow.
    """
    slots = window_slots(window)

    @T.macro
    def find_chunk(c, query, positions, kv_start, selected, table, sizes, rows, segment):
        """1 if slot c holds an entry that the query sees, else 0; then ``rows`` and ``segment`` say which."""
        visible = T.alloc_var("int32")
        position = T.alloc_var("int32")
        position = positions[query]
        batch = T.alloc_var("int32")
        batch = query // sizes[0]
        first = T.alloc_var("int32")
        first = T.max(T.max(position - window + 1, kv_start[batch]), 0)
        last = T.alloc_var("int32")
        last = T.min(position + 1, kv_start[batch] + sizes[1])
        complete = T.alloc_var("int32")
        complete = 0
        if topk == 0:
            complete = T.min((position + 1) // ratio, sizes[2])
        origin = T.alloc_var("int32")
        origin = (first // CHUNK + c) * CHUNK
        at = T.alloc_var("int32")
        at = (c - slots) * CHUNK
        visible = 0
        if position >= 0:
            if c < slots:
                if T.max(first, origin) < T.min(last, origin + CHUNK):
                    visible = 1
            else:
                if topk == 0:
                    if at < complete:
                        visible = 1
                else:
                    if selected[query, at] >= 0:
                        visible = 1
        if visible == 1:
            for i in T.Parallel(1):
                segment[i] = T.if_then_else(c < slots, 0, 1)
            for j in T.Parallel(CHUNK):
                row = T.alloc_var("int32")
                row = -1
                index = T.alloc_var("int32")
                index = -1
                if c < slots:
                    if origin + j >= first and origin + j < last:
                        row = batch * sizes[1] + origin + j - kv_start[batch]
                else:
                    if topk == 0:
                        index = T.if_then_else(at + j < complete, at + j, -1)
                    else:
                        if at + j < topk:
                            index = selected[query, at + j]
                    if index >= 0 and index < sizes[2]:
                        if page == 0:
                            row = batch * sizes[2] + index
                        else:
                            row = table[batch * sizes[3] + index // page] * page + index % page
                rows[j] = row
        return visible

    return find_chunk


@T.macro
def _allocate_queries(block_H, D, native):
    """Tiles of a block's heads: slices and exponents, in native mode the rows themselves."""
    if native:
        q_rows = T.alloc_shared((block_H, D), "uint16")
        return (q_rows,)
    q_high = T.alloc_shared((block_H, D), "int8")
    q_low = T.alloc_shared((block_H, D), "int8")
    q_exponent = T.alloc_shared((block_H,), "int32")
    return (q_high, q_low, q_exponent)


@T.macro
def _load_query(q, query, head, H, queries):
    """The block's heads; what lies beyond the last head is computed and never written."""
    if len(queries) == 1:
        for i, k in T.Parallel(queries[0].shape[0], queries[0].shape[1]):
            queries[0][i, k] = T.if_then_else(head + i < H, q[query * H + T.min(head + i, H - 1), k], T.uint16(0))
    else:
        tile = T.alloc_shared(queries[0].shape, "uint16")
        T.copy(q[query * H + head, 0], tile)
        cut_rows(tile, *queries)


@T.macro
def _add_chunk(m, l, o, queries, kv, entries, segment, rows, factor_bits, block_E, fresh):  # noqa: E741
    """The state with one chunk, by the products of the mode whose tiles ``queries`` are."""
    if len(queries) == 1:
        attention_chunk_native(
            m, l, o, *queries, kv, entries, segment, rows, _factor(factor_bits), factor_bits, block_E, fresh
        )
    else:
        attention_chunk(
            m, l, o, *queries, kv, entries, segment, rows, _factor(factor_bits), factor_bits, block_E, fresh
        )


@T.macro
def _load_sink(sink, head, H, tile):
    for i in T.Parallel(tile.shape[0]):
        tile[i] = T.if_then_else(head + i < H, sink[T.min(head + i, H - 1)], T.float32(0))


@T.macro
def _write(o, query, head, H, rope, cos, sin, out):
    """out = the output tiles, rotated back on the trailing ``rope`` channels, as bfloat16."""
    block_D = o[0].shape[1]
    plain = block_D * len(o) - rope
    for block, tile in enumerate(o):
        if rope == 0 or (block + 1) * block_D <= plain:
            for i, d in T.Parallel(tile.shape[0], block_D):
                if head + i < H:
                    bits = T.alloc_var("int32")
                    bits = bits_of(tile[i, d])
                    out[query * H + head + i, block * block_D + d] = T.cast(bf16.encode(bits), "uint16")
        else:
            turned = T.alloc_shared((tile.shape[0], block_D), "float32")
            T.copy(tile, turned)
            for i, d in T.Parallel(tile.shape[0], block_D):
                if head + i < H:
                    value = T.alloc_var("float32")
                    value = turned[i, d]
                    pair = T.alloc_var("int32")
                    pair = (block * block_D + d - plain) // 2
                    if block * block_D + d >= plain:
                        c = T.alloc_var("float32")
                        c = read(cos[query, pair])
                        s = T.alloc_var("float32")
                        s = read(sin[query, pair])
                        if d % 2 == 0:
                            value = limit(limit(value * c) + limit(turned[i, d + 1] * s))
                        else:
                            value = limit(limit(value * c) - limit(turned[i, d - 1] * s))
                    bits = T.alloc_var("int32")
                    bits = bits_of(value)
                    out[query * H + head + i, block * block_D + d] = T.cast(bf16.encode(bits), "uint16")


def _factor(factor_bits):
    return struct.unpack("<f", struct.pack("<i", factor_bits))[0]


def attention(H, D, window, ratio, topk, page, rope, factor_bits, native, block_H, block_E, block_D, threads):
    """out = attention of each query over its window and its compressed entries.

    Args:
        H, D, window: static. Queries, entries, batch rows, pages and chunk slots are dynamic.
        ratio: raw entries to a compressed one, where all complete entries are seen (``topk`` 0).
        topk: selected entries of a query, or 0; ``selected`` is ascending with negative entries last.
        page: entries to a page, or 0 where a batch row's entries lie side by side.
        rope: channels to rotate back on the output.
        factor_bits: float32 bits of what scores are multiplied by.
        native: bfloat16 products as the device rounds them (native mode).
        block_H, block_E, block_D, threads: schedule; never changes a bit of the result.
    """
    Q, rows_q, rows_kv, rows_e = T.dynamic("Q"), T.dynamic("rows_q"), T.dynamic("rows_kv"), T.dynamic("rows_e")
    B, pages, C = T.dynamic("B"), T.dynamic("pages"), T.dynamic("C")
    find_chunk = _chunk_finder(window, ratio, topk, page)
    slots = window_slots(window)

    @T.prim_func
    def main(
        q: T.Tensor((rows_q, D), "uint16"),
        kv: T.Tensor((rows_kv, D), "uint16"),
        entries: T.Tensor((rows_e, D), "uint16"),
        selected: T.Tensor((Q, max(topk, 1)), "int32"),
        sink: T.Tensor((H,), "float32"),
        positions: T.Tensor((Q,), "int32"),
        kv_start: T.Tensor((B,), "int32"),
        table: T.Tensor((pages,), "int32"),
        sizes: T.Tensor((SIZES,), "int32"),
        chunk_slots: T.Tensor((C,), "int8"),
        cos: T.Tensor((Q, max(rope // 2, 1)), "float32"),
        sin: T.Tensor((Q, max(rope // 2, 1)), "float32"),
        out: T.Tensor((rows_q, D), "uint16"),
    ):
        with T.Kernel(T.ceildiv(H, block_H), Q, threads=threads) as (bh, query):
            queries = _allocate_queries(block_H, D, native)
            sinks = T.alloc_shared((block_H,), "float32")
            m = T.alloc_shared((block_H,), "float32")
            l = T.alloc_shared((block_H,), "float32")  # noqa: E741
            o = [T.alloc_fragment((block_H, block_D), "float32") for _ in range(D // block_D)]
            rows = T.alloc_shared((CHUNK,), "int32")
            segment = T.alloc_shared((1,), "int32")
            visible = T.alloc_var("int32")
            _load_query(q, query, bh * block_H, H, queries)
            _load_sink(sink, bh * block_H, H, sinks)
            start(m, l, o, sinks)
            for c in T.serial(slots + C):
                visible = find_chunk(c, query, positions, kv_start, selected, table, sizes, rows, segment)
                if visible == 1:
                    _add_chunk(m, l, o, queries, kv, entries, segment, rows, factor_bits, block_E, False)
            finish(l, o)
            _write(o, query, bh * block_H, H, rope, cos, sin, out)

    return main


def attention_parts(H, D, window, ratio, topk, page, factor_bits, native, splits, block_H, block_E, block_D, threads):
    """The states of single chunks, in any order: what :func:`attention_merge` puts together.

    Args:
        splits: blocks among which a query's chunk slots are dealt; never changes a bit. Others as in :func:`attention`.
            ``part_m`` and ``part_l`` hold H values per query and slot, ``part_o`` H rows; ``part_l`` is 0, and nothing
            else written, where a query sees nothing of a slot.
    """
    Q, rows_q, rows_kv, rows_e = T.dynamic("Q"), T.dynamic("rows_q"), T.dynamic("rows_kv"), T.dynamic("rows_e")
    B, pages, C = T.dynamic("B"), T.dynamic("pages"), T.dynamic("C")
    parts, part_rows = T.dynamic("parts"), T.dynamic("part_rows")
    find_chunk = _chunk_finder(window, ratio, topk, page)
    slots = window_slots(window)

    @T.prim_func
    def main(
        q: T.Tensor((rows_q, D), "uint16"),
        kv: T.Tensor((rows_kv, D), "uint16"),
        entries: T.Tensor((rows_e, D), "uint16"),
        selected: T.Tensor((Q, max(topk, 1)), "int32"),
        positions: T.Tensor((Q,), "int32"),
        kv_start: T.Tensor((B,), "int32"),
        table: T.Tensor((pages,), "int32"),
        sizes: T.Tensor((SIZES,), "int32"),
        chunk_slots: T.Tensor((C,), "int8"),
        part_m: T.Tensor((parts, H), "float32"),
        part_l: T.Tensor((parts, H), "float32"),
        part_o: T.Tensor((part_rows, D), "float32"),
    ):
        with T.Kernel(splits, T.ceildiv(H, block_H), Q, threads=threads) as (split, bh, query):
            queries = _allocate_queries(block_H, D, native)
            m = T.alloc_shared((block_H,), "float32")
            l = T.alloc_shared((block_H,), "float32")  # noqa: E741
            o = [T.alloc_fragment((block_H, block_D), "float32") for _ in range(D // block_D)]
            rows = T.alloc_shared((CHUNK,), "int32")
            segment = T.alloc_shared((1,), "int32")
            visible = T.alloc_var("int32")
            head = bh * block_H
            if split < slots + C:
                _load_query(q, query, head, H, queries)
            for turn in T.serial(T.ceildiv(slots + C, splits)):
                c = split + turn * splits
                if c < slots + C:
                    visible = find_chunk(c, query, positions, kv_start, selected, table, sizes, rows, segment)
                    if visible == 1:
                        _add_chunk(m, l, o, queries, kv, entries, segment, rows, factor_bits, block_E, True)
                        for block, tile in enumerate(o):
                            for i, d in T.Parallel(block_H, block_D):
                                if head + i < H:
                                    part_o[(query * (slots + C) + c) * H + head + i, block * block_D + d] = tile[i, d]
                    for i in T.Parallel(block_H):
                        if head + i < H:
                            part_m[query * (slots + C) + c, head + i] = T.if_then_else(
                                visible == 1, m[i], T.float32(EMPTY)
                            )
                            part_l[query * (slots + C) + c, head + i] = T.if_then_else(visible == 1, l[i], T.float32(0))

    return main


def attention_merge(H, D, window, rope, block_H, block_D, threads):
    """out = the sink and the states of :func:`attention_parts`, merged in the order of their chunks."""
    Q, rows_q, C = T.dynamic("Q"), T.dynamic("rows_q"), T.dynamic("C")
    parts, part_rows = T.dynamic("parts"), T.dynamic("part_rows")
    slots = window_slots(window)

    @T.prim_func
    def main(
        part_m: T.Tensor((parts, H), "float32"),
        part_l: T.Tensor((parts, H), "float32"),
        part_o: T.Tensor((part_rows, D), "float32"),
        sink: T.Tensor((H,), "float32"),
        chunk_slots: T.Tensor((C,), "int8"),
        cos: T.Tensor((Q, max(rope // 2, 1)), "float32"),
        sin: T.Tensor((Q, max(rope // 2, 1)), "float32"),
        out: T.Tensor((rows_q, D), "uint16"),
    ):
        with T.Kernel(T.ceildiv(H, block_H), Q, threads=threads) as (bh, query):
            sinks = T.alloc_shared((block_H,), "float32")
            m = T.alloc_shared((block_H,), "float32")
            l = T.alloc_shared((block_H,), "float32")  # noqa: E741
            other_m = T.alloc_shared((block_H,), "float32")
            other_l = T.alloc_shared((block_H,), "float32")
            o = [T.alloc_fragment((block_H, block_D), "float32") for _ in range(D // block_D)]
            other_o = [T.alloc_fragment((block_H, block_D), "float32") for _ in range(D // block_D)]
            head = bh * block_H
            _load_sink(sink, head, H, sinks)
            start(m, l, o, sinks)
            for c in T.serial(slots + C):
                part = query * (slots + C) + c
                if bits_of(part_l[part, head]) != 0:
                    for i in T.Parallel(block_H):
                        other_m[i] = T.if_then_else(head + i < H, part_m[part, T.min(head + i, H - 1)], T.float32(0))
                        other_l[i] = T.if_then_else(head + i < H, part_l[part, T.min(head + i, H - 1)], T.float32(0))
                    for block, tile in enumerate(other_o):
                        T.copy(part_o[part * H + head, block * block_D], tile)
                    merge(m, l, o, other_m, other_l, other_o)
            finish(l, o)
            _write(o, query, head, H, rope, cos, sin, out)

    return main
