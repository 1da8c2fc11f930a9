"""Mixtures and collapses of residual streams as microkernels."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import tirx

from .sources import Source, checked, stride, tile_address


def _int32(value: Any) -> Any:
    return tirx.IntImm("int32", int(value))


def _int64(value: Any) -> Any:
    return tirx.IntImm("int64", int(value))


def _global(buffer: Any, first: Any, column: Any) -> list[Any]:
    return [Source(buffer, (first, column)).address(), stride(buffer)]


def _sizes(composite: Composite, x: Any, rows: Any) -> list[Any]:
    first, _, tokens = composite.operands[-3:]
    n = composite.parameters["n"]
    used = tirx.min(_int32(rows), tokens - first)
    numbers = (composite.parameters["width"], n, composite.parameters["dtype"])
    return [_int64(int(x.shape[1]) // n), used, tokens, *map(_int32, numbers)]


def _mix(composite: Composite) -> Any:
    out, y, x, gate, m = (operand.buffer for operand in composite.operands[:5])
    first, column, _ = composite.operands[5:]
    arguments = [argument for buffer in (out, y, x) for argument in _global(buffer, first, column)]
    arguments += [argument for tile in (gate, m) for argument in (tile_address(tile), stride(tile))]
    return checked("kf_mix_streams", [*arguments, *_sizes(composite, x, gate.shape[0])])


def _collapse(composite: Composite) -> Any:
    out, x, gate = (operand.buffer for operand in composite.operands[:3])
    first, column, _ = composite.operands[3:]
    arguments = [argument for buffer in (out, x) for argument in _global(buffer, first, column)]
    arguments += [tile_address(gate), stride(gate)]
    return checked("kf_collapse_streams", [*arguments, *_sizes(composite, x, gate.shape[1])])


TAKERS = {"mix_streams": _mix, "collapse_streams": _collapse}


def take_streams(function: Any) -> Any:
    """Take ``mix_streams`` and ``collapse_streams`` whole: streams are read and written in global memory, once."""
    if not any(composite.name in TAKERS for composite in composites_in(function)):
        return function
    return take_composites(function, TAKERS, keep_others=True)
