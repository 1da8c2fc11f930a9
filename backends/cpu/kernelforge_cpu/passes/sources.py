"""Tiles that are copies of global memory, read where they came from; calls of microkernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, called, mutator, post_order, tirx


@dataclass(frozen=True)
class Source:
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


def copies(function: Any) -> dict[Any, Source]:
    """Sources of the tiles whose only write is one copy from global memory."""
    writes: dict[Any, list[Source | None]] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tirx.BufferStore):
            writes.setdefault(node.buffer, []).append(None)
        elif called(node) == "tl.tileop.copy":
            source, target = node.args[0].args[0], node.args[1].args[0]
            whole = source.buffer.scope() == "global"
            writes.setdefault(target.buffer, []).append(Source(source.buffer, tuple(source.indices)) if whole else None)
        elif called(node) == "tl.tileop.fill":
            writes.setdefault(node.args[0].args[0].buffer, []).append(None)

    post_order(function.body, visit)
    return {tile: made[0] for tile, made in writes.items() if len(made) == 1 and made[0] is not None}


def _with_allocations(op: Any, body: Any, kept: list[Any]) -> Any:
    return tirx.SBlock(
        op.iter_vars, op.reads, op.writes, op.name_hint, body, op.init, kept, op.match_buffers, op.annotations
    )


@mutator
class _DropCopies(PyStmtExprMutator):
    def __init__(self, tiles: Sequence[Any]) -> None:
        super().__init__()
        self.tiles = tiles

    def visit_evaluate_(self, op: Any) -> Any:
        if called(op.value) == "tl.tileop.copy":
            target = op.value.args[1].args[0].buffer
            if any(target.same_as(tile) for tile in self.tiles):
                return tirx.Evaluate(tirx.IntImm("int32", 0))
        return op


@mutator
class _KeepUsed(PyStmtExprMutator):
    def __init__(self, used: set[Any]) -> None:
        super().__init__()
        self.used = used

    def visit_sblock_(self, op: Any) -> Any:
        return _with_allocations(op, self.visit_stmt(op.body), [b for b in op.alloc_buffers if b in self.used])


def drop_tiles(function: Any, tiles: Sequence[Any]) -> Any:
    """Remove the copies that fill ``tiles``, and every tile that nothing reads or writes any more."""
    body = _DropCopies(tiles).visit_stmt(function.body)
    used: set[Any] = set()

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.BufferStore)):
            used.add(node.buffer)

    post_order(body, visit)
    return function.with_body(_KeepUsed(used).visit_stmt(body))


def stride(buffer: Any) -> Any:
    """Elements from one row of a buffer to the next."""
    return tirx.Cast("int64", buffer.shape[-1])


def tile_address(buffer: Any) -> Any:
    """Address of a tile's first element."""
    return tirx.address_of(tirx.BufferLoad(buffer, [0] * len(buffer.shape)))


def checked(microkernel: str, arguments: Sequence[Any]) -> Any:
    """The statement that calls a microkernel and keeps its status."""
    call = tirx.call_extern("int32", microkernel, *arguments)
    return tirx.Evaluate(tirx.call_extern("int32", "kf_checked", call))
