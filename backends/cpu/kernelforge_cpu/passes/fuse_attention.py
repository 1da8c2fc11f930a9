"""Attention chunks, and the cutting of rows, as microkernels."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, take_composites
from kernelforge.lowering.tir import tirx

from .sources import checked


def _address(load: Any) -> Any:
    return tirx.address_of(load)


def _int32(value: int) -> Any:
    return tirx.IntImm("int32", value)


def _attention_chunk(composite: Composite) -> Any:
    m, l, q_high, q_low, q_exponent, *others = composite.operands  # noqa: E741
    return _chunk("kf_attention_chunk", 4, composite, (m, l), (q_high, q_low, q_exponent), others)


def _attention_chunk_native(composite: Composite) -> Any:
    m, l, q, *others = composite.operands  # noqa: E741
    return _chunk("kf_attention_chunk_native", 8, composite, (m, l), (q,), others)


def _chunk(name: str, rows: int, composite: Composite, state: Any, queries: Any, others: Any) -> Any:
    """The call that adds a chunk to a state; heads must be a multiple of ``rows``."""
    kv, entries, segment, chunk_rows, *o = others
    if len(o) != 1:
        return None  # numerators in several tiles: a schedule for other memories
    heads, width = (int(extent) for extent in queries[0].buffer.shape)
    if heads % rows or width % 32:
        return None
    operands = [_address(load) for load in (*state, o[0])]
    operands.append(tirx.IntImm("int64", int(o[0].buffer.shape[1])))
    operands += [_address(load) for load in (*queries, kv, entries, segment, chunk_rows)]
    factor = _int32(composite.parameters["factor"])
    return checked(name, [*operands, _int32(heads), _int32(width), factor, _int32(composite.parameters["fresh"])])


def _cut_rows(composite: Composite) -> Any:
    rows, width = (int(extent) for extent in composite.operands[0].buffer.shape)
    return checked("kf_cut_rows", [*map(_address, composite.operands), _int32(rows), _int32(width)])


def fuse_attention(function: Any) -> Any:
    """Take ``attention_chunk``, its native twin and the ``cut_rows`` outside them whole: one call each.

    A chunk whose numerators lie in several tiles keeps its portable body.
    """
    takers = {
        "attention_chunk": _attention_chunk,
        "attention_chunk_native": _attention_chunk_native,
        "cut_rows": _cut_rows,
    }
    return take_composites(function, takers, keep_others=True)
