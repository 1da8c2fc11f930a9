"""Accumulators that start from zero in the microkernel that adds to them."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, called, mutator, post_order, tirx

from .fuse_block_accumulate import MICROKERNEL


def _cleared(statement: Any) -> Any:
    """The tile that a statement fills with zeros, whole, or None."""
    if not isinstance(statement, tirx.Evaluate) or called(statement.value) != "tl.tileop.fill":
        return None
    region, value = statement.value.args[0], statement.value.args[1]
    zero = isinstance(value, (tirx.IntImm, tirx.FloatImm)) and float(value.value) == 0
    tile = region.args[0].buffer
    whole = [int(extent) for extent in tile.shape] == [int(extent) for extent in region.args[2:]]
    return tile if zero and whole and len(tile.shape) == 2 else None


def _mentions(node: Any, wanted: Any) -> bool:
    found = []
    post_order(node, lambda inner: found.append(inner) if _is(inner, wanted) else None)
    return bool(found)


def _is(node: Any, wanted: Any) -> bool:
    if isinstance(node, (tirx.BufferLoad, tirx.BufferStore)):
        return bool(node.buffer.same_as(wanted))
    return isinstance(node, tirx.Var) and bool(node.same_as(wanted))


def _call(statement: Any) -> Any:
    """The microkernel's call in a statement of its own, or None."""
    if not isinstance(statement, tirx.Evaluate) or called(statement.value) != "tirx.call_extern":
        return None
    inner = statement.value.args[-1]
    if called(inner) != "tirx.call_extern" or not str(inner.args[0].value).startswith(MICROKERNEL):
        return None
    return inner


def _adds_to(statement: Any, tile: Any) -> bool:
    call = _call(statement)
    return call is not None and _mentions(call.args[1], tile) and not any(_mentions(x, tile) for x in call.args[2:])


def _statements(body: Any) -> list[Any]:
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def _sum_loop(statement: Any, tile: Any) -> bool:
    """Whether a statement is a loop of at least one turn in which one microkernel, and nothing else, uses the tile."""
    if not isinstance(statement, tirx.For) or not isinstance(statement.extent, tirx.IntImm):
        return False
    if int(statement.extent) < 1 or int(statement.min) != 0 or statement.thread_binding is not None:
        return False
    inner = [part for part in _statements(statement.body) if _mentions(part, tile)]
    return len(inner) == 1 and _adds_to(inner[0], tile)


def _starting(statement: Any, clear: Any) -> Any:
    """The microkernel's statement with another last argument."""
    outer, inner = statement.value, _call(statement)
    call = tirx.call_extern("int32", inner.args[0].value, *list(inner.args[1:-1]), clear)
    return tirx.Evaluate(tirx.call_extern("int32", outer.args[0].value, call))


def _zeros(tile: Any, rows: tuple[Any, Any], columns: tuple[Any, Any]) -> Any:
    i, j = tirx.Var("i", "int32"), tirx.Var("j", "int32")
    store = tirx.BufferStore(tile, tirx.FloatImm(tile.dtype, 0.0), [rows[0] + i, columns[0] + j])
    inner = tirx.For(j, 0, columns[1] - columns[0], tirx.ForKind.SERIAL, store)
    return tirx.For(i, 0, rows[1] - rows[0], tirx.ForKind.SERIAL, inner)


def _rest(tile: Any, call: Any) -> list[Any]:
    """Zeros where the microkernel writes nothing: the rows and columns beyond what it is given. Rows beyond those that
    the kernel asked for may be anything."""
    rows, columns = (int(extent) for extent in tile.shape)
    used, valid = tirx.max(call.args[-4], 0), tirx.max(call.args[-3], 0)
    asked = call.args[-4].b if _is_limited(call.args[-4]) else rows
    return [_zeros(tile, (used, tirx.min(asked, rows)), (0, columns)), _zeros(tile, (0, used), (valid, columns))]


def _is_limited(used: Any) -> bool:
    """Whether the kernel said how many rows it uses: a variable, behind the rows that there are."""
    return isinstance(used, tirx.Min) and isinstance(used.b, tirx.BufferLoad)


@mutator
class _Clear(PyStmtExprMutator):
    def visit_seq_stmt_(self, op: Any) -> Any:
        statements = [self.visit_stmt(statement) for statement in op.seq]
        for at, statement in enumerate(statements):
            tile = _cleared(statement)
            users = [i for i in range(at + 1, len(statements)) if _mentions(statements[i], tile)] if tile else []
            if not users:
                continue
            first = statements[users[0]]
            replaced = self._replaced(first, tile)
            if replaced is not None:
                statements[at] = tirx.Evaluate(0)
                statements[users[0] : users[0] + 1] = replaced
        return tirx.SeqStmt(statements)

    @staticmethod
    def _replaced(user: Any, tile: Any) -> list[Any] | None:
        """What stands for the fill and the statement that adds: extents may be set only there, so the rest follows."""
        if _adds_to(user, tile):
            return [_starting(user, tirx.IntImm("int32", 1)), *_rest(tile, _call(user))]
        if not _sum_loop(user, tile):
            return None
        parts = _statements(user.body)
        at = next(i for i, part in enumerate(parts) if _adds_to(part, tile))
        inside = [user.loop_var, *(part.var for part in parts if isinstance(part, tirx.Bind))]
        call = _call(parts[at])
        if any(_mentions(extent, name) for extent in call.args[-4:-2] for name in inside):
            return None
        parts[at] = _starting(parts[at], tirx.Cast("int32", tirx.EQ(user.loop_var, 0)))
        loop = tirx.For(user.loop_var, user.min, user.extent, user.kind, tirx.SeqStmt(parts), None, user.annotations)
        return [loop, *_rest(tile, call)]


def clear_in_place(function: Any) -> Any:
    """Turn ``clear(acc)`` before the microkernel's first addition into that call's ``clear`` argument.

    Only the part of the tile that the microkernel is not given is filled with zeros: nothing, in a full tile. In a loop
    over k, its first turn clears. Where anything else uses the tile in between, the fill stays.
    """
    return function.with_body(_Clear().visit_stmt(function.body))
