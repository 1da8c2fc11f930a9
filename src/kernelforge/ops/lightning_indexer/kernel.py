"""The lightning indexer as TileLang kernels: scores and selection in one stream, and the merge of what pieces selected.

Which queries and entries a block takes is data: a row of ``work`` names them. So one kernel serves prefill and decode,
batches, and any way of cutting the entries into pieces.
"""

import tilelang.language as T

from ...formats.tile import bf16
from . import selection, tile

FIRST_QUERY, LAST_QUERY, FIRST_ENTRY, BEGIN, END, SLOT, SLOT_STEP, WORK_COLUMNS = range(8)
"""Columns of ``work``: queries [first, last) of all; the row of ``K`` of their sequence's entry 0; the entries
[begin, end) of the sequence that this block looks at; the first query's output row, and how far the next one's is."""


@T.macro
def _last_visible(kv_len, work, item, block_S):
    """Behind the last entry that any of the block's queries sees."""
    end = T.alloc_var("int32")
    end = 0
    for s in T.serial(block_S):
        if work[item, FIRST_QUERY] + s < work[item, LAST_QUERY]:
            end = T.max(end, kv_len[work[item, FIRST_QUERY] + s])
    return T.min(end, work[item, END])


@T.macro
def _visible_in_tile(visible, kv_len, work, item, first):
    """visible[s] = entries from ``first`` that query s sees; at most the block's, 0 for queries that are not there."""
    for s in T.Parallel(visible.shape[0]):
        visible[s] = 0
        if work[item, FIRST_QUERY] + s < work[item, LAST_QUERY]:
            visible[s] = T.max(T.min(kv_len[work[item, FIRST_QUERY] + s], work[item, END]) - first, 0)


def lightning_indexer(H, D, qk_format, topk, final, block_S, block_T, slack, threads, native=False):
    """The ``topk`` entries with the largest scores, for each query of a block among the block's entries.

    Args:
        H, D: heads and their width, a multiple of 32; at most 512 for bfloat16.
        qk_format: of queries and keys: "e2m1" (packed, E8M0 scales) | "bf16" (bits; scales are one byte, not read).
        topk: how many are chosen; at most 32768.
        final: write the order of C9 (indices, bfloat16 scores); else what a merge takes: keys (0 for none) and
            indices, ascending by index.
        block_S, block_T, slack, threads: schedule; never changes a bit. A tile is ``block_S`` queries by ``block_T``
            entries, a multiple of 16; ``slack`` entries beyond ``topk`` are kept before the selection is reduced.
        native: bfloat16 products as the device rounds them (native mode).
    """
    rows, heads, entries, items, tiles, slots = (
        T.dynamic(name) for name in ("rows", "heads", "entries", "items", "tiles", "slots")
    )
    # Matrix units take 16 columns at least; columns beyond the queries' heads are not looked at.
    columns = tile.padded(block_S * H, tile.COLUMNS)
    stored, (width, scales) = tile.STORAGE[qk_format], tile.widths(D, qk_format)
    query_scales, key_scales = (1, 1) if qk_format == "bf16" else (heads, entries)

    @T.prim_func
    def main(
        Q: T.Tensor((heads, width), stored),
        Q_scale: T.Tensor((query_scales, scales), "uint8"),
        K: T.Tensor((entries, width), stored),
        K_scale: T.Tensor((key_scales, scales), "uint8"),
        weights: T.Tensor((rows, H), "float32"),
        kv_len: T.Tensor((rows,), "int32"),
        work: T.Tensor((items, WORK_COLUMNS), "int32"),
        starts: T.Tensor((tiles,), "int32"),
        index: T.Tensor((slots, topk), "int32"),
        score: T.Tensor((slots, topk), "uint16"),
    ):
        with T.Kernel(items, threads=threads) as item:
            q = tile.allocate_rows(columns, D, qk_format, native)
            k = tile.allocate_rows(block_T, D, qk_format, native)
            weight = T.alloc_shared((block_S, H), "float32")
            scores = T.alloc_shared((block_S, block_T), "float32")
            visible = T.alloc_shared((block_S,), "int32")
            kept = selection.allocate(block_S, topk, slack, block_T, threads)
            end = T.alloc_var("int32")
            first = T.alloc_var("int32")
            end = _last_visible(kv_len, work, item, block_S)
            tile.load_rows(q, Q, Q_scale, work[item, FIRST_QUERY] * H)
            T.copy(weights[work[item, FIRST_QUERY], 0], weight)
            selection.select_clear(kept)
            for i in T.serial(tiles):
                first = work[item, BEGIN] + starts[i]
                if first < end:
                    tile.load_rows(k, K, K_scale, work[item, FIRST_ENTRY] + first)
                    _visible_in_tile(visible, kv_len, work, item, first)
                    tile.indexer_scores(scores, q, k, weight, visible, H)
                    selection.select_append(kept, scores, visible, first, topk)
            selection.select_reduce(kept, topk)
            if final:
                selection.select_sort(kept, topk)
                for s, r in T.Parallel(block_S, topk):
                    if work[item, FIRST_QUERY] + s < work[item, LAST_QUERY]:
                        _write_ranked(kept, s, r, work[item, SLOT] + s * work[item, SLOT_STEP], index, score)
            else:
                for s, r in T.Parallel(block_S, topk):
                    if work[item, FIRST_QUERY] + s < work[item, LAST_QUERY]:
                        _write_kept(kept, s, r, work[item, SLOT] + s * work[item, SLOT_STEP], index, score)

    return main


@T.macro
def _write_ranked(kept, s, r, slot, index, score):
    """Index and score of the entry of rank ``r``; -1 and -Inf where there is none."""
    if r < kept.count[s]:
        index[slot, r] = kept.index[s, kept.order[s, r]]
        score[slot, r] = T.cast(selection.score_bits(kept.keys[s, kept.order[s, r]]), "uint16")
    else:
        index[slot, r] = -1
        score[slot, r] = T.cast(0xFF80, "uint16")


@T.macro
def _write_kept(kept, s, r, slot, index, key):
    """Index and key of the kept entry ``r``; -1 and 0 where there is none."""
    if r < kept.count[s]:
        index[slot, r] = kept.index[s, r]
        key[slot, r] = T.cast(kept.keys[s, r], "uint16")
    else:
        index[slot, r] = -1
        key[slot, r] = T.cast(0, "uint16")


def merge_selections(topk, slack, threads):
    """One selection from those of pieces: row r of the output from rows [r * pieces, (r + 1) * pieces) of the input.

    Args:
        topk, slack, threads: as in :func:`lightning_indexer`.
    """
    rows, slots = T.dynamic("rows"), T.dynamic("slots")
    width = tile.padded(topk, selection.GROUP)

    @T.prim_func
    def main(
        piece_index: T.Tensor((slots, topk), "int32"),
        piece_key: T.Tensor((slots, topk), "uint16"),
        index: T.Tensor((rows, topk), "int32"),
        score: T.Tensor((rows, topk), "uint16"),
    ):
        with T.Kernel(rows, threads=threads) as row:
            position_of = T.alloc_shared((1, width), "int32")
            kept = selection.allocate(1, topk, slack, width, threads)
            slot = T.alloc_var("int32")
            selection.select_clear(kept)
            for piece in T.serial(T.floordiv(slots, rows)):
                slot = row * T.floordiv(slots, rows) + piece
                for s, r in T.Parallel(1, width):
                    kept.fresh[s, r] = -1
                    position_of[s, r] = -1
                    if r < topk and piece_index[slot, r] >= 0:
                        kept.fresh[s, r] = T.cast(piece_key[slot, r], "int32")
                        position_of[s, r] = piece_index[slot, r]
                selection.select_merge(kept, position_of, topk)
            selection.select_reduce(kept, topk)
            selection.select_sort(kept, topk)
            for s, r in T.Parallel(1, topk):
                _write_ranked(kept, s, r, row, index, score)

    return main


LOGIT_STORAGE = {"bfloat16": "uint16", "float32": "float32"}


def indexer_logits(H, D, qk_format, out_dtype, block_S, block_T, threads, native=False):
    """Every score: logits[s * entries of its sequence + t], -Inf where t >= kv_len[s].

    Args:
        H, D, qk_format, block_S, block_T, threads, native: as in :func:`lightning_indexer`; the entries of ``work``
            begin at 0.
        out_dtype: "bfloat16" | "float32".
    """
    rows, heads, entries, items, tiles, cells = (
        T.dynamic(name) for name in ("rows", "heads", "entries", "items", "tiles", "cells")
    )
    columns = tile.padded(block_S * H, tile.COLUMNS)
    stored, (width, scales) = tile.STORAGE[qk_format], tile.widths(D, qk_format)
    query_scales, key_scales = (1, 1) if qk_format == "bf16" else (heads, entries)

    @T.prim_func
    def main(
        Q: T.Tensor((heads, width), stored),
        Q_scale: T.Tensor((query_scales, scales), "uint8"),
        K: T.Tensor((entries, width), stored),
        K_scale: T.Tensor((key_scales, scales), "uint8"),
        weights: T.Tensor((rows, H), "float32"),
        kv_len: T.Tensor((rows,), "int32"),
        work: T.Tensor((items, WORK_COLUMNS), "int32"),
        starts: T.Tensor((tiles,), "int32"),
        logits: T.Tensor((cells,), LOGIT_STORAGE[out_dtype]),
    ):
        with T.Kernel(items, tiles, threads=threads) as (item, piece):
            q = tile.allocate_rows(columns, D, qk_format, native)
            k = tile.allocate_rows(block_T, D, qk_format, native)
            weight = T.alloc_shared((block_S, H), "float32")
            scores = T.alloc_shared((block_S, block_T), "float32")
            visible = T.alloc_shared((block_S,), "int32")
            end = T.alloc_var("int32")
            first = T.alloc_var("int32")
            end = _last_visible(kv_len, work, item, block_S)
            first = starts[piece]
            if first < end:
                tile.load_rows(q, Q, Q_scale, work[item, FIRST_QUERY] * H)
                T.copy(weights[work[item, FIRST_QUERY], 0], weight)
                tile.load_rows(k, K, K_scale, work[item, FIRST_ENTRY] + first)
            _visible_in_tile(visible, kv_len, work, item, first)
            if first < end:
                tile.indexer_scores(scores, q, k, weight, visible, H)
            for s, t in T.Parallel(block_S, block_T):
                if work[item, FIRST_QUERY] + s < work[item, LAST_QUERY] and first + t < work[item, END]:
                    bits = T.alloc_var("int32")
                    bits = T.reinterpret(T.float32(float("-inf")), "int32")
                    if t < visible[s]:
                        bits = T.reinterpret(scores[s, t], "int32")
                    at = (work[item, FIRST_QUERY] + s) * work[item, END] + first + t
                    if out_dtype == "float32":
                        logits[at] = T.reinterpret(bits, "float32")
                    else:
                        logits[at] = T.cast(bf16.encode(bits), "uint16")

    return main
