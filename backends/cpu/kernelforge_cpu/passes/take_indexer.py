"""The lightning indexer's scores and selection as microkernels."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import tirx

from .sources import Source, checked, copies, drop_tiles, stride, tile_address

SCORES, VALUES = "indexer_scores", "mx_values"


def _int32(value: Any) -> Any:
    return tirx.IntImm("int32", int(value))


def _int64(value: Any) -> Any:
    return tirx.IntImm("int64", int(value))


def _forwarded(composite: Composite) -> list[Any]:
    """The tiles of queries and keys that are read where they were copied from."""
    return [operand.buffer for operand in composite.operands[1:5]]


def _scores(composite: Composite, sources: dict[Any, Source]) -> Any:
    scores, q, q_scale, k, k_scale, weights, visible = (operand.buffer for operand in composite.operands)
    queries, entries = scores.shape
    arguments = [tile_address(scores), _int64(entries)]
    for tile in (q, q_scale, k, k_scale):
        arguments += [sources[tile].address(), stride(sources[tile].buffer)]
    arguments += [tile_address(weights), _int64(weights.shape[1]), tile_address(visible)]
    heads = composite.parameters["heads"]
    arguments += [_int32(queries), _int32(entries), _int32(heads), _int32(2 * int(q.shape[1]))]
    return checked("kf_indexer_scores", arguments)


def _append(composite: Composite) -> Any:
    keys, index, count, threshold, scores, visible, _ = (operand.buffer for operand in composite.operands)
    queries, entries = scores.shape
    arguments = [tile_address(tile) for tile in (keys, index, count, threshold)]
    arguments += [_int32(keys.shape[1]), tile_address(scores), tile_address(visible), composite.operands[-1]]
    arguments += [_int32(queries), _int32(entries), _int32(composite.parameters["topk"])]
    return checked("kf_select_append", arguments)


def _reduce(composite: Composite) -> Any:
    tiles = [operand.buffer for operand in composite.operands]
    queries, capacity = tiles[0].shape
    sizes = [_int32(capacity), _int32(queries), _int32(composite.parameters["topk"])]
    return checked("kf_select_reduce", [*(tile_address(tile) for tile in tiles), *sizes])


def _sort(composite: Composite) -> Any:
    keys, count, order = (operand.buffer for operand in composite.operands)
    queries, size = order.shape
    sizes = [_int32(keys.shape[1]), _int32(queries), _int32(size)]
    return checked("kf_select_sort", [*(tile_address(tile) for tile in (keys, count, order)), *sizes])


def take_indexer(function: Any) -> Any:
    """Take ``indexer_scores`` and the ``select_*`` regions whole.

    Scores read queries and keys in global memory; where their tiles are not plain copies of it, the portable body
    stays. Values of tiles that are read there are not computed.
    """
    sources = copies(function)

    def scores(composite: Composite) -> Any:
        fusible = all(tile in sources for tile in _forwarded(composite))
        return _scores(composite, sources) if fusible else None

    found = composites_in(function)
    tiles = [
        tile
        for composite in found
        if composite.name == SCORES and scores(composite) is not None
        for tile in _forwarded(composite)
    ]

    def values(composite: Composite) -> Any:
        return tirx.Evaluate(_int32(0)) if composite.operands[1].buffer in tiles else None

    takers = {
        SCORES: scores,
        VALUES: values,
        "select_append": _append,
        "select_reduce": _reduce,
        "select_sort": _sort,
    }
    if not any(composite.name in takers for composite in found):
        return function
    return drop_tiles(take_composites(function, takers), tiles)
