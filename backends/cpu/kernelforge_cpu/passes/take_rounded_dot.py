"""Native mode's products as one microkernel."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, take_composites
from kernelforge.lowering.rounded_dots import ROUNDED_DOT
from kernelforge.lowering.tir import tirx

from .sources import checked, tile_address

MICROKERNEL = "kf_rounded_dot"


def _call(composite: Composite) -> Any:
    a, b, out = (operand.buffer for operand in composite.operands)
    if not composite.parameters["transpose_b"]:
        return None  # values of attention, whose chunks are taken whole
    sizes = (*out.shape, a.shape[1])
    arguments = [tile_address(out), tile_address(a), tile_address(b)]
    return checked(MICROKERNEL, [*arguments, *(tirx.IntImm("int32", int(size)) for size in sizes)])


def take_rounded_dot(function: Any) -> Any:
    """Take ``rounded_dot`` of rows by rows whole; other regions stay."""
    return take_composites(function, {ROUNDED_DOT: _call}, keep_others=True)
