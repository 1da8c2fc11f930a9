"""Conditions leave the loops they do not depend on."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, conjuncts, mutator, post_order, tirx


def _invariant(condition: Any, loop_var: Any, body: Any) -> bool:
    """Whether a condition is the same in every iteration: of memory it reads variables alone, which ``body`` does not
    change and whose address it does not use."""
    found = []
    read: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, tirx.BufferLoad) and node.buffer.scope() == "local.var":
            read.append(node.buffer)
        elif isinstance(node, (tirx.BufferLoad, tirx.Call)) or (isinstance(node, tirx.Var) and node.same_as(loop_var)):
            found.append(node)

    def visit_body(node: Any) -> None:
        changed = node.buffer.data if isinstance(node, tirx.BufferStore) else node
        if isinstance(changed, tirx.Var) and any(changed.same_as(buffer.data) for buffer in read):
            found.append(node)

    post_order(condition, visit)
    if read:
        post_order(body, visit_body)
    return not found


def _guarded(conditions: list[Any], body: Any) -> Any:
    return tirx.IfThenElse(tirx.all(*conditions), body, None) if conditions else body


@mutator
class _Hoist(PyStmtExprMutator):
    def visit_for_(self, op: Any) -> Any:
        body = self.visit_stmt(op.body)
        if not isinstance(body, tirx.IfThenElse) or body.else_case is not None or op.thread_binding is not None:
            return self._loop(op, body)
        parts = conjuncts(body.condition)
        outside = [part for part in parts if _invariant(part, op.loop_var, body.then_case)]
        inside = [part for part in parts if not any(part.same_as(other) for other in outside)]
        return _guarded(outside, self._loop(op, _guarded(inside, body.then_case) if outside else body))

    @staticmethod
    def _loop(op: Any, body: Any) -> Any:
        return tirx.For(op.loop_var, op.min, op.extent, op.kind, body, op.thread_binding, op.annotations)


def hoist_conditions(function: Any) -> Any:
    """Turn ``for c: if p and q: S`` into ``if p: for c: if q: S`` where p does not depend on c.

    The guard of a token, inside a loop over its channels, would be a mask on every access; and a long body under a
    condition is not made into vectors.
    """
    return function.with_body(_Hoist().visit_stmt(function.body))
