"""MX block accumulation as one microkernel over the operands where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import PyStmtExprMutator, called, mutator, post_order, tirx
from kernelforge.numerics.block_accumulate import A_FORMATS

NAME = "mx_block_accumulate"
MICROKERNEL = "kf_mx_block_accumulate"
UNSCALED = A_FORMATS.index("bf16")


@dataclass(frozen=True)
class _Source:
    """Where a tile was copied from: a buffer in global memory and the tile's first index in it."""

    buffer: Any
    start: tuple[Any, ...]

    def address(self) -> Any:
        # TileLang's StorageRewrite takes the common factor of an index for a vector length and keeps 16 bits of it, so
        # a factor like 32768 stops it. What a call returns has no known factor.
        *leading, last = self.start
        opaque = tirx.call_pure_extern("int64", "kf_index", last)
        return tirx.address_of(tirx.BufferLoad(self.buffer, [*leading, opaque]))

    def valid(self, axis: int, tile_extent: int) -> Any:
        """Extent of the tile along ``axis`` that lies inside the buffer."""
        return tirx.min(tirx.IntImm("int32", tile_extent), self.buffer.shape[axis] - self.start[axis])


def _copies(function: Any) -> dict[Any, _Source]:
    """Sources of the tiles whose only write is one copy from global memory."""
    writes: dict[Any, list[_Source | None]] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tirx.BufferStore):
            writes.setdefault(node.buffer, []).append(None)
        elif called(node) == "tl.tileop.copy":
            source, target = node.args[0].args[0], node.args[1].args[0]
            whole = source.buffer.scope() == "global"
            writes.setdefault(target.buffer, []).append(
                _Source(source.buffer, tuple(source.indices)) if whole else None
            )
        elif called(node) == "tl.tileop.fill":
            writes.setdefault(node.args[0].args[0].buffer, []).append(None)

    post_order(function.body, visit)
    return {tile: made[0] for tile, made in writes.items() if len(made) == 1 and made[0] is not None}


def _tiles(composite: Composite) -> tuple[Any, ...]:
    """The tiles a, a_scale, w, w_scale; before them stands acc, behind them the number of rows, where it is given."""
    return tuple(operand.buffer for operand in composite.operands[1:5])


def _fusible(composite: Composite, sources: dict[Any, _Source]) -> bool:
    a, a_scale, w, w_scale = _tiles(composite)
    tiles = (a, w, w_scale) if composite.parameters["a_format"] == UNSCALED else (a, a_scale, w, w_scale)
    return all(tile in sources for tile in tiles)


@mutator
class _DropTiles(PyStmtExprMutator):
    def __init__(self, tiles: list[Any]) -> None:
        super().__init__()
        self.tiles = tiles

    def _dropped(self, buffer: Any) -> bool:
        return any(buffer.same_as(tile) for tile in self.tiles)

    def visit_evaluate_(self, op: Any) -> Any:
        if called(op.value) == "tl.tileop.copy" and self._dropped(op.value.args[1].args[0].buffer):
            return tirx.Evaluate(tirx.IntImm("int32", 0))
        return op

    def visit_sblock_(self, op: Any) -> Any:
        kept = [buffer for buffer in op.alloc_buffers if not self._dropped(buffer)]
        return tirx.SBlock(
            op.iter_vars,
            op.reads,
            op.writes,
            op.name_hint,
            self.visit_stmt(op.body),
            op.init,
            kept,
            op.match_buffers,
            op.annotations,
        )


def _stride(buffer: Any) -> Any:
    return tirx.Cast("int64", buffer.shape[-1])


def _call(composite: Composite, sources: dict[Any, _Source]) -> Any:
    acc, (a, a_scale, w, w_scale) = composite.operands[0].buffer, _tiles(composite)
    rows, columns = int(acc.shape[0]), int(acc.shape[1])
    a_from, w_from = sources[a], sources[w]
    arguments: list[Any] = [tirx.address_of(tirx.BufferLoad(acc, [0, 0])), tirx.IntImm("int64", columns)]
    for tile in (a, a_scale, w, w_scale):
        # BF16 activations have no scale: the tile is never filled, and the microkernel does not read it.
        source = sources.get(tile, a_from)
        arguments += [source.address(), _stride(source.buffer)]
    depth = w_from.valid(1, int(w.shape[1])) * 2
    used = a_from.valid(0, rows)
    for limit in composite.operands[5:]:
        used = tirx.min(used, limit)
    arguments += [used, w_from.valid(0, columns), depth]
    microkernel = f"{MICROKERNEL}_{A_FORMATS[composite.parameters['a_format']]}"
    call = tirx.call_extern("int32", microkernel, *arguments)
    return tirx.Evaluate(tirx.call_extern("int32", "kf_checked", call))


def fuse_block_accumulate(function: Any) -> Any:
    """Take ``mx_block_accumulate`` whole: one call on the operands in global memory; their copies and tiles go away.

    A region whose tiles were not copied from global memory as they are keeps its portable body.
    """
    sources = _copies(function)
    regions = [composite for composite in composites_in(function) if composite.name == NAME]
    taken = [composite for composite in regions if _fusible(composite, sources)]
    tiles = [tile for composite in taken for tile in _tiles(composite)]

    def take(composite: Composite) -> Any:
        return _call(composite, sources) if _fusible(composite, sources) else None

    fused = take_composites(function, {NAME: take})
    return fused.with_body(_DropTiles(tiles).visit_stmt(fused.body))
