"""The weighted mean over an entry's slots, the entry made of it, and its gradient, as one microkernel each."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import tirx

from .sources import Source, checked, stride, tile_address

LANES = 32
"""Slots that are summed side by side."""
MANY = 4 * LANES
"""Most slots, four to a lane."""


def _shape(composite: Composite, channels: Any, kv: Any, first: Any, absent: tuple[Any, ...]) -> list[Any]:
    """Arguments of every microkernel behind its tiles: where the slots are, and how many."""
    wide = [tirx.Cast("int64", value) for value in (first, kv.shape[0])]
    numbers = (*(composite.parameters[name] for name in ("ratio", "slots", "series")), channels)
    return [
        *(stride(kv), *wide, *absent),
        *(tirx.IntImm("int32", int(value)) for value in (*numbers, composite.parameters["wide"])),
    ]


def _addresses(buffers: Any, column: Any) -> list[Any]:
    return [Source(buffer, (tirx.IntImm("int32", 0), column)).address() for buffer in buffers]


def _weighted_mean(composite: Composite) -> Any:
    mean, kv, gate, bias = (operand.buffer for operand in composite.operands[:4])
    first, column = composite.operands[4:]
    arguments = [tile_address(mean), *_addresses((kv, gate, bias), column)]
    return checked("kf_weighted_mean", arguments + _shape(composite, mean.shape[0], kv, first, ()))


def _in_window(composite: Composite, first_row: Any, window: Any) -> tuple[Any, Any]:
    """The row of a window's first slot, and how many slots before the sequence have no token."""
    ratio, slots = composite.parameters["ratio"], composite.parameters["slots"]
    before = slots - ratio  # slots of tokens before the window
    absent = tirx.max(tirx.IntImm("int32", before) - window * ratio, tirx.IntImm("int32", 0))
    return first_row + window * ratio - before, absent


def _takes(composite: Composite) -> bool:
    """Whether the microkernels that know of missing tokens take so many slots."""
    ratio, slots = composite.parameters["ratio"], composite.parameters["slots"]
    return bool(slots < LANES or (slots == ratio and slots <= MANY and slots % LANES == 0))


def _known_mean(composite: Composite) -> Any:
    if not _takes(composite):
        return None
    mean, top, share, kv, gate, bias = (operand.buffer for operand in composite.operands[:6])
    first_row, window, column = composite.operands[6:]
    first, absent = _in_window(composite, first_row, window)
    arguments = [*(tile_address(tile) for tile in (mean, top, share)), *_addresses((kv, gate, bias), column)]
    return checked("kf_known_mean", arguments + _shape(composite, mean.shape[0], kv, first, (absent,)))


def _mean_gradient(composite: Composite) -> Any:
    if not _takes(composite):
        return None
    sums, kv_grad, gate_grad, *known = (operand.buffer for operand in composite.operands[:7])
    kv, gate, bias = (operand.buffer for operand in composite.operands[7:10])
    first_row, window, column = composite.operands[10:]
    first, absent = _in_window(composite, first_row, window)
    arguments = [tile_address(sums), *_addresses((kv_grad, gate_grad), column), *map(tile_address, known)]
    arguments += _addresses((kv, gate, bias), column)
    return checked("kf_mean_gradient", arguments + _shape(composite, sums.shape[1], kv, first, (absent,)))


def _finished_entry(composite: Composite) -> Any:
    entries, mean, weight, cos, sin = (operand.buffer for operand in composite.operands[:5])
    row, position = composite.operands[5:]
    zero = tirx.IntImm("int32", 0)
    arguments = [Source(entries, (row, zero)).address(), tile_address(mean)]
    arguments += [tile_address(buffer) for buffer in (weight, cos, sin)]
    arguments += [tirx.Cast("int64", cos.shape[0]), tirx.Cast("int64", position)]
    given = composite.parameters
    numbers = (given["ratio"], mean.shape[-1], cos.shape[-1], given["eps"], given["wide"])
    return checked("kf_finish_entry", arguments + [tirx.IntImm("int32", int(number)) for number in numbers])


TAKERS = {
    "weighted_mean": _weighted_mean,
    "finished_entry": _finished_entry,
    "known_mean": _known_mean,
    "mean_gradient": _mean_gradient,
}


def take_weighted_mean(function: Any) -> Any:
    """Take ``weighted_mean``, ``finished_entry``, ``known_mean`` and ``mean_gradient`` whole: kv and gate stay where
    they are, logits and weights in the first cache or in registers; an entry is stored as it is turned."""
    if not any(composite.name in TAKERS for composite in composites_in(function)):
        return function
    return take_composites(function, TAKERS, keep_others=True)
