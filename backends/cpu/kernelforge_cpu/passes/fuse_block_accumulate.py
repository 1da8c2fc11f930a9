"""MX block accumulation as one microkernel over the operands where they lie."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import tirx
from kernelforge.numerics.block_accumulate import A_FORMATS

from .sources import Source, checked, copies, drop_tiles, stride, tile_address

NAME = "mx_block_accumulate"
MICROKERNEL = "kf_mx_block_accumulate"
UNSCALED = A_FORMATS.index("bf16")


def _tiles(composite: Composite) -> tuple[Any, ...]:
    """The tiles a, a_scale, w, w_scale; before them stands acc, behind them the number of rows, where it is given."""
    return tuple(operand.buffer for operand in composite.operands[1:5])


def _fusible(composite: Composite, sources: dict[Any, Source]) -> bool:
    a, a_scale, w, w_scale = _tiles(composite)
    tiles = (a, w, w_scale) if composite.parameters["a_format"] == UNSCALED else (a, a_scale, w, w_scale)
    return all(tile in sources for tile in tiles)


def _call(composite: Composite, sources: dict[Any, Source]) -> Any:
    acc, (a, a_scale, w, w_scale) = composite.operands[0].buffer, _tiles(composite)
    rows, columns = int(acc.shape[0]), int(acc.shape[1])
    a_from, w_from = sources[a], sources[w]
    arguments: list[Any] = [tile_address(acc), tirx.IntImm("int64", columns)]
    for tile in (a, a_scale, w, w_scale):
        # BF16 activations have no scale: the tile is never filled, and the microkernel does not read it.
        source = sources.get(tile, a_from)
        arguments += [source.address(), stride(source.buffer)]
    depth = w_from.valid(1, int(w.shape[1])) * 2
    used = a_from.valid(0, rows)
    for limit in composite.operands[5:]:
        used = tirx.min(used, limit)
    arguments += [used, w_from.valid(0, columns), depth, tirx.IntImm("int32", 0)]
    microkernel = f"{MICROKERNEL}_{A_FORMATS[composite.parameters['a_format']]}"
    return checked(microkernel, arguments)


def fuse_block_accumulate(function: Any) -> Any:
    """Take ``mx_block_accumulate`` whole: one call on the operands in global memory; their copies and tiles go away.

    A region whose tiles were not copied from global memory as they are keeps its portable body.
    """
    sources = copies(function)
    regions = [composite for composite in composites_in(function) if composite.name == NAME]
    taken = [composite for composite in regions if _fusible(composite, sources)]
    tiles = [tile for composite in taken for tile in _tiles(composite)]

    def take(composite: Composite) -> Any:
        return _call(composite, sources) if _fusible(composite, sources) else None

    fused = take_composites(function, {NAME: take})
    return drop_tiles(fused, tiles)
