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
    m, l, q_high, q_low, q_exponent, kv, entries, segment, rows, *o = composite.operands  # noqa: E741
    if len(o) != 1:
        return None  # numerators in several tiles: a schedule for other memories
    heads, width = (int(extent) for extent in q_high.buffer.shape)
    if heads % 4 or width % 32:
        return None
    operands = [_address(load) for load in (m, l, o[0])]
    operands.append(tirx.IntImm("int64", int(o[0].buffer.shape[1])))
    operands += [_address(load) for load in (q_high, q_low, q_exponent, kv, entries, segment, rows)]
    factor = _int32(composite.parameters["factor"])
    name = "kf_attention_chunk_native" if composite.parameters["native"] and heads % 8 == 0 else "kf_attention_chunk"
    return checked(name, [*operands, _int32(heads), _int32(width), factor, _int32(composite.parameters["fresh"])])


def _cut_rows(composite: Composite) -> Any:
    rows, width = (int(extent) for extent in composite.operands[0].buffer.shape)
    return checked("kf_cut_rows", [*map(_address, composite.operands), _int32(rows), _int32(width)])


def fuse_attention(function: Any) -> Any:
    """Take ``attention_chunk`` and the ``cut_rows`` outside it whole: one call each.

    A chunk whose numerators lie in several tiles keeps its portable body.
    """
    takers = {"attention_chunk": _attention_chunk, "cut_rows": _cut_rows}
    return take_composites(function, takers, keep_others=True)
