"""Conditions leave the loops they do not depend on."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, mutator, post_order, tirx


def _invariant(condition: Any, loop_var: Any) -> bool:
    """Whether a condition is the same in every iteration: memory may change, so it must not read any."""
    found = []

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.Call)) or (isinstance(node, tirx.Var) and node.same_as(loop_var)):
            found.append(node)

    post_order(condition, visit)
    return not found


@mutator
class _Hoist(PyStmtExprMutator):
    def visit_for_(self, op: Any) -> Any:
        body = self.visit_stmt(op.body)
        guarded = isinstance(body, tirx.IfThenElse) and body.else_case is None
        if guarded and op.thread_binding is None and _invariant(body.condition, op.loop_var):
            return tirx.IfThenElse(body.condition, self._loop(op, body.then_case), None)
        return self._loop(op, body)

    @staticmethod
    def _loop(op: Any, body: Any) -> Any:
        return tirx.For(op.loop_var, op.min, op.extent, op.kind, body, op.thread_binding, op.annotations)


def hoist_conditions(function: Any) -> Any:
    """Turn ``for c: if p: S`` into ``if p: for c: S`` where p does not depend on c.

    The guard of a token, inside a loop over its channels, would be a mask on every access.
    """
    return function.with_body(_Hoist().visit_stmt(function.body))
