"""Results go where they belong as they are made, without a tile between."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, called, mutator, post_order, tirx

from .sources import Source, drop_tiles


def _copy_out(statement: Any) -> tuple[Any, Source] | None:
    """The tile that a statement copies to global memory, and where to."""
    if not isinstance(statement, tirx.Evaluate) or called(statement.value) != "tl.tileop.copy":
        return None
    tile, target = (region.args[0] for region in statement.value.args[:2])
    whole = all(isinstance(index, tirx.IntImm) and int(index) == 0 for index in tile.indices)
    if not whole or tile.buffer.scope() == "global" or target.buffer.scope() != "global":
        return None
    if len(tile.buffer.shape) != 2 or len(target.buffer.shape) != 2:
        return None
    return tile.buffer, Source(target.buffer, tuple(target.indices))


def _element_loop(statement: Any, tile: Any) -> bool:
    """Whether a statement is ``for i, j in parallel over the tile``, and stores the tile at [i, j] alone."""
    loops: list[Any] = [statement, getattr(statement, "body", None)]
    for loop, extent in zip(loops, tile.shape, strict=True):
        if not isinstance(loop, tirx.For) or loop.kind != tirx.ForKind.PARALLEL:
            return False
        if not isinstance(loop.extent, tirx.IntImm) or int(loop.extent) != int(extent) or int(loop.min) != 0:
            return False
    stores = []
    post_order(loops[1].body, lambda node: stores.append(node) if _stores(node, tile) else None)
    return len(stores) == 1 and all(i.same_as(v.loop_var) for i, v in zip(stores[0].indices, loops, strict=True))


def _stores(node: Any, tile: Any) -> bool:
    return isinstance(node, tirx.BufferStore) and bool(node.buffer.same_as(tile))


@mutator
class _Redirect(PyStmtExprMutator):
    def __init__(self, tile: Any, target: Source) -> None:
        super().__init__()
        self.tile, self.target = tile, target

    def visit_buffer_store_(self, op: Any) -> Any:
        if not op.buffer.same_as(self.tile):
            return op
        indices = [start + index for start, index in zip(self.target.start, op.indices, strict=True)]
        return tirx.BufferStore(self.target.buffer, op.value, indices)


def _stored_directly(loops: Any, tile: Any, target: Source) -> Any:
    columns = loops.body
    inner = tirx.For(
        columns.loop_var,
        columns.min,
        target.valid(1, int(tile.shape[1])),
        tirx.ForKind.SERIAL,
        _Redirect(tile, target).visit_stmt(columns.body),
    )
    return tirx.For(loops.loop_var, loops.min, target.valid(0, int(tile.shape[0])), tirx.ForKind.SERIAL, inner)


@mutator
class _Store(PyStmtExprMutator):
    def __init__(self, uses: dict[Any, int]) -> None:
        super().__init__()
        self.uses = uses
        self.tiles: list[Any] = []

    def visit_seq_stmt_(self, op: Any) -> Any:
        statements = [self.visit_stmt(statement) for statement in op.seq]
        for at, (loops, copy) in enumerate(pairwise(list(statements))):
            found = _copy_out(copy)
            if found is None or self.uses[found[0]] != 2 or not _element_loop(loops, found[0]):
                continue
            tile, target = found
            if _touches(loops, target.buffer):
                continue
            self.tiles.append(tile)
            statements[at] = _stored_directly(loops, tile, target)
            statements[at + 1] = tirx.Evaluate(tirx.IntImm("int32", 0))
        return tirx.SeqStmt(statements)


def _touches(statement: Any, buffer: Any) -> bool:
    found = []

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.BufferStore)) and node.buffer.same_as(buffer):
            found.append(node)

    post_order(statement, visit)
    return bool(found)


def _uses(function: Any) -> dict[Any, int]:
    uses: dict[Any, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.BufferStore)):
            uses[node.buffer] = uses.get(node.buffer, 0) + 1

    post_order(function.body, visit)
    return uses


def store_results(function: Any) -> Any:
    """Turn ``for i, j: t[i, j] = x`` and ``copy(t, out[r, c])`` behind it into ``for i, j: out[r + i, c + j] = x``.

    The loops end where ``out`` ends, so rows and columns beyond it cost nothing, and no index needs a guard. The tile
    goes away. Where anything else reads or writes the tile, or the loop touches ``out``, both stay.
    """
    store = _Store(_uses(function))
    body = store.visit_stmt(function.body)
    return drop_tiles(function.with_body(body), store.tiles)
