"""A selection that streams: what the indexer's kernels keep of the scores that come by.

For each query it keeps the entries that may still be among the largest, in ascending index order, and the key that a
new entry has to exceed. Since entries come in ascending order, one whose key only equals the threshold loses to those
that are kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tilelang.language as T

from ...formats.tile import bf16
from ...numerics.tile.composite import composite
from .tile import padded

GROUP = 8
"""Entries that one iteration counts and moves; buffers hold a multiple of it."""

SPAN = 16
"""Groups that one iteration of the next level adds up."""

KEY_BITS = 16


class Selection(NamedTuple):
    """Tiles of a selection in shared memory, for S queries and a capacity of C entries; all int32.

    Attributes:
        keys: [S, C], what orders the kept entries: larger is better, 1 .. 65535.
        index: [S, C], which entries they are, ascending.
        count: [S], how many are kept.
        threshold: [S], a new entry's key has to exceed it.
        fresh: [S, T], keys of the tile that comes in; -1 is no entry.
        groups: [S, max(C, T) / GROUP], counts, then positions, of groups of entries.
        spans: [S, C / GROUP / SPAN], the same of spans of groups.
        floor: [S], the threshold while it is searched.
        order: [S, P], packed key and position of the entries that stay, P a power of two of at least ``topk``.
        moved: [S, P], their indices on the way.
    """

    keys: Any
    index: Any
    count: Any
    threshold: Any
    fresh: Any
    groups: Any
    spans: Any
    floor: Any
    order: Any
    moved: Any


def capacity(topk: int, slack: int, entries: int, threads: int) -> int:
    """Entries that a selection holds: ``topk``, ``slack`` and at least one tile more, and a group for every thread.

    Loops over all groups, and over all ranks, then keep every thread of a block busy: compilers put the barriers of
    shorter ones under conditions that only some threads meet.
    """
    return padded(topk + max(slack, entries), GROUP * threads)


def allocate(queries: int, topk: int, slack: int, entries: int, threads: int) -> Selection:
    """Tiles of a selection that takes ``entries`` at a time; threads are a power of two."""
    held = capacity(topk, slack, entries, threads)
    groups = max(held, entries) // GROUP
    ranks = max(1 << (topk - 1).bit_length(), threads)
    widths = (held, held, None, None, entries, groups, held // GROUP // SPAN, None, ranks, ranks)
    return Selection(*(T.alloc_shared((queries,) if w is None else (queries, w), "int32") for w in widths))


@T.macro
def select_clear(selection: Selection) -> None:
    """Nothing is kept."""
    for s in T.Parallel(selection.count.shape[0]):
        selection.count[s] = 0
        selection.threshold[s] = -1


def _order(code: Any) -> Any:
    """Integers 1 .. 65535 that order bfloat16 bits as the contract does; the one NaN is the largest."""
    return T.if_then_else(code >= 0x8000, 0xFFFF - code, code + 0x8000)


def score_bits(key: Any) -> Any:
    """The bfloat16 bits under a key."""
    return T.if_then_else(key >= 0x8000, key - 0x8000, 0xFFFF - key)


@T.macro
def _sum_spans(groups: Any, spans: Any) -> None:
    """spans[s, v] = the sum of a span of groups."""
    for s, v in T.Parallel(spans.shape[0], spans.shape[1]):
        total = T.alloc_var("int32")
        total = 0
        for j in T.serial(SPAN):
            total = total + groups[s, v * SPAN + j]
        spans[s, v] = total


@T.macro
def _positions(counts: Any, start: Any, width: int) -> None:
    """Counts become where each begins; ``start``, where the first begins, becomes where the last one ends."""
    for s in T.Parallel(start.shape[0]):
        position = T.alloc_var("int32")
        found = T.alloc_var("int32")
        position = start[s]
        for g in T.serial(width):
            found = counts[s, g]
            counts[s, g] = position
            position = position + found
        start[s] = position


@T.macro
def _positions_in_spans(groups: Any, spans: Any) -> None:
    """Counts of groups become where each begins, given where its span begins."""
    for s, v in T.Parallel(spans.shape[0], spans.shape[1]):
        position = T.alloc_var("int32")
        found = T.alloc_var("int32")
        position = spans[s, v]
        for j in T.serial(SPAN):
            found = groups[s, v * SPAN + j]
            groups[s, v * SPAN + j] = position
            position = position + found


@T.macro
def _append(selection: Selection, position_of: Any, first: Any) -> None:
    """Keep the fresh entries whose key exceeds the threshold; there is room for all of them.

    Their index is ``position_of[s, t]``, or ``first + t`` where that is None.
    """
    # Loops read what one query shares before they begin: a barrier that a compiler puts into a loop does not order the
    # last iteration's reads before a later write.
    keys, index, count, threshold, fresh, groups, _, _, _, _ = selection
    queries, entries = fresh.shape
    for s, g in T.Parallel(queries, entries // GROUP):
        found = T.alloc_var("int32")
        least = T.alloc_var("int32")
        found = 0
        least = threshold[s]
        for j in T.serial(GROUP):
            if fresh[s, g * GROUP + j] > least:
                found = found + 1
        groups[s, g] = found
    _positions(groups, count, entries // GROUP)
    for s, g in T.Parallel(queries, entries // GROUP):
        position = T.alloc_var("int32")
        least = T.alloc_var("int32")
        position = groups[s, g]
        least = threshold[s]
        for j in T.serial(GROUP):
            if fresh[s, g * GROUP + j] > least:
                keys[s, position] = fresh[s, g * GROUP + j]
                if position_of is None:
                    index[s, position] = first + g * GROUP + j
                else:
                    index[s, position] = position_of[s, g * GROUP + j]
                position = position + 1


@T.macro
def _find_floor(selection: Selection, topk: int) -> None:
    """floor[s] = the ``topk``-th largest key, bit by bit from the highest; 0 where fewer are kept."""
    keys, _, count, _, _, groups, spans, floor, _, _ = selection
    queries, held = keys.shape
    for s in T.Parallel(queries):
        floor[s] = 0
    for step in T.serial(KEY_BITS):
        for s, g in T.Parallel(queries, held // GROUP):
            found = T.alloc_var("int32")
            kept = T.alloc_var("int32")
            least = T.alloc_var("int32")
            found = 0
            kept = count[s]
            least = floor[s] + (0x8000 >> step)
            for j in T.serial(GROUP):
                if g * GROUP + j < kept and keys[s, g * GROUP + j] >= least:
                    found = found + 1
            groups[s, g] = found
        _sum_spans(groups, spans)
        for s in T.Parallel(queries):
            total = T.alloc_var("int32")
            total = 0
            for v in T.serial(spans.shape[1]):
                total = total + spans[s, v]
            if total >= topk:
                floor[s] = floor[s] + (0x8000 >> step)


@T.macro
def select_reduce(selection: Selection, topk: int) -> None:
    """Keep no more than the ``topk`` largest; where there are as many, their smallest key becomes the threshold."""
    keys, index, count, threshold, _, groups, spans, floor, order, moved = selection
    with composite("select_reduce", keys, index, count, threshold, topk=topk):
        queries, held = keys.shape
        larger = T.alloc_shared((queries,), "int32")
        _find_floor(selection, topk)
        # Two counts in one integer: keys above the floor, and from bit 16 keys equal to it.
        for s, g in T.Parallel(queries, held // GROUP):
            found = T.alloc_var("int32")
            kept = T.alloc_var("int32")
            least = T.alloc_var("int32")
            found = 0
            kept = count[s]
            least = floor[s]
            for j in T.serial(GROUP):
                if g * GROUP + j < kept:
                    if keys[s, g * GROUP + j] > least:
                        found = found + 1
                    if keys[s, g * GROUP + j] == least:
                        found = found + 0x10000
            groups[s, g] = found
        for s in T.Parallel(queries):
            larger[s] = 0
        _sum_spans(groups, spans)
        _positions(spans, larger, spans.shape[1])
        _positions_in_spans(groups, spans)
        for s, g in T.Parallel(queries, held // GROUP):
            above = T.alloc_var("int32")
            equal = T.alloc_var("int32")
            room = T.alloc_var("int32")
            kept = T.alloc_var("int32")
            least = T.alloc_var("int32")
            above = groups[s, g] & 0xFFFF
            equal = groups[s, g] >> 16
            room = topk - (larger[s] & 0xFFFF)
            kept = count[s]
            least = floor[s]
            for j in T.serial(GROUP):
                if g * GROUP + j < kept:
                    if keys[s, g * GROUP + j] > least:
                        order[s, above + T.min(equal, room)] = g * GROUP + j
                        above = above + 1
                    elif keys[s, g * GROUP + j] == least:
                        if equal < room:
                            order[s, above + equal] = g * GROUP + j
                        equal = equal + 1
        for s in T.Parallel(queries):
            count[s] = T.min(topk, (larger[s] & 0xFFFF) + (larger[s] >> 16))
            if count[s] == topk:
                threshold[s] = floor[s]
        # Entries move within their tile: all are read before one is written.
        for s, p in T.Parallel(queries, order.shape[1]):
            if p < count[s]:
                moved[s, p] = index[s, order[s, p]]
                order[s, p] = keys[s, order[s, p]]
        for s, p in T.Parallel(queries, order.shape[1]):
            if p < count[s]:
                index[s, p] = moved[s, p]
                keys[s, p] = order[s, p]


@T.macro
def _reduce_if_full(selection: Selection, topk: int) -> None:
    """Make room for one more tile."""
    full = T.alloc_var("int32")
    full = 0
    for s in T.serial(selection.count.shape[0]):
        full = T.max(full, selection.count[s])
    if full > selection.keys.shape[1] - selection.fresh.shape[1]:
        select_reduce(selection, topk)


@T.macro
def select_append(selection: Selection, scores: Any, visible: Any, first: Any, topk: int) -> None:
    """Take in a tile of scores; afterwards there is room for another one.

    Args:
        selection: with room for the tile.
        scores: float32 [S, T]; compared after rounding to bfloat16.
        visible: int32 [S]; entries t >= visible[s] are none.
        first: int32, the index of the tile's first entry.
        topk: how many are wanted in the end.
    """
    keys, index, count, threshold, fresh, _, _, _, _, _ = selection
    base = T.alloc_var("int32")
    base = first
    with composite("select_append", keys, index, count, threshold, scores, visible, base.buffer, topk=topk):
        for s, t in T.Parallel(fresh.shape[0], fresh.shape[1]):
            code = T.alloc_var("int32")
            code = bf16.encode(T.reinterpret(scores[s, t], "int32"))
            fresh[s, t] = T.if_then_else(t < visible[s], _order(code), -1)
        _append(selection, None, base)
        _reduce_if_full(selection, topk)


@T.macro
def select_merge(selection: Selection, position_of: Any, topk: int) -> None:
    """Take in ``selection.fresh``, whose entries have the indices ``position_of`` (int32 [S, T])."""
    _append(selection, position_of, 0)
    _reduce_if_full(selection, topk)


@T.macro
def select_sort(selection: Selection, topk: int) -> None:
    """order[s, r] = where the entry of rank r is kept, -1 beyond the last one; a bitonic network.

    The selection is reduced: at most ``topk`` entries are kept.
    """
    keys, _, count, _, _, _, _, _, order, moved = selection
    with composite("select_sort", keys, count, order, topk=topk):
        queries, size = order.shape
        steps = int(size).bit_length() - 1
        for s, p in T.Parallel(queries, size):
            # Larger key first, then the lower position, in one integer.
            packed = T.alloc_var("int32")
            packed = T.int32(-0x80000000)
            if p < count[s]:
                packed = ((keys[s, p] - 0x8000) << 16) | (0xFFFF - p)
            order[s, p] = packed
        for merge in T.serial(steps):
            for step in T.serial(steps):
                if step <= merge:
                    for s, p in T.Parallel(queries, size):
                        one = T.alloc_var("int32")
                        other = T.alloc_var("int32")
                        one = order[s, p]
                        other = order[s, p ^ (1 << (merge - step))]
                        # Runs of 2^(merge + 1) descend and ascend in turn, the first descends; the lower position of
                        # a descending run, and the upper one of an ascending run, takes the larger.
                        larger = ((p >> (merge - step)) & 1) == ((p >> (merge + 1)) & 1)
                        moved[s, p] = T.if_then_else(larger, T.max(one, other), T.min(one, other))
                    for s, p in T.Parallel(queries, size):
                        order[s, p] = moved[s, p]
        for s, p in T.Parallel(queries, size):
            rank = T.alloc_var("int32")
            rank = -1
            if p < count[s]:
                rank = 0xFFFF - (order[s, p] & 0xFFFF)
            order[s, p] = rank
