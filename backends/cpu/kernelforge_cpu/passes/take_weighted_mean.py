"""The weighted mean over an entry's slots as one microkernel."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import tirx

from .sources import Source, checked, stride, tile_address

COMPOSITE = "weighted_mean"
MICROKERNEL = "kf_weighted_mean"


def _call(composite: Composite) -> Any:
    mean, kv, gate, bias = (operand.buffer for operand in composite.operands[:4])
    first, column = composite.operands[4:]
    start = (tirx.IntImm("int32", 0), column)
    arguments = [tile_address(mean), *(Source(buffer, start).address() for buffer in (kv, gate, bias)), stride(kv)]
    arguments += [tirx.Cast("int64", value) for value in (first, kv.shape[0])]
    numbers = (*(composite.parameters[name] for name in ("ratio", "slots", "series")), mean.shape[0])
    arguments += [tirx.IntImm("int32", int(value)) for value in (*numbers, composite.parameters["wide"])]
    return checked(MICROKERNEL, arguments)


def take_weighted_mean(function: Any) -> Any:
    """Take ``weighted_mean`` whole: kv and gate stay where they are, logits and weights in the first cache."""
    if not any(composite.name == COMPOSITE for composite in composites_in(function)):
        return function
    return take_composites(function, {COMPOSITE: _call}, keep_others=True)
