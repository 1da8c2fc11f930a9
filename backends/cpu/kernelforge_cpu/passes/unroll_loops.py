"""Unrolled loops become straight code."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, mutator, post_order, tirx

LARGEST = 128
"""Iterations up to which a loop is written out."""


@mutator
class _RenameBindings(PyStmtExprMutator):
    def __init__(self, names: dict[Any, Any]) -> None:
        super().__init__()
        self.names = names

    def visit_bind_(self, op: Any) -> Any:
        return tirx.Bind(self.names.get(op.var, op.var), op.value)


def _copy(body: Any, replaced: dict[Any, Any]) -> Any:
    """``body`` with variables replaced and named values of its own."""
    names: dict[Any, Any] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tirx.Bind):
            names[node.var] = tirx.Var(node.var.name, node.var.dtype)

    post_order(body, visit)
    if names:
        body = _RenameBindings(names).visit_stmt(body)
    return tirx.stmt_functor.substitute(body, {**replaced, **names})


@mutator
class _Unroll(PyStmtExprMutator):
    def visit_for_(self, op: Any) -> Any:
        body = self.visit_stmt(op.body)
        constant = isinstance(op.min, tirx.IntImm) and isinstance(op.extent, tirx.IntImm)
        if op.kind != tirx.ForKind.UNROLLED or not constant or not 0 < int(op.extent) <= LARGEST:
            return tirx.For(op.loop_var, op.min, op.extent, op.kind, body, op.thread_binding, op.annotations)
        low = int(op.min)
        copies = [
            _copy(body, {op.loop_var: tirx.IntImm(op.loop_var.dtype, i)}) for i in range(low, low + int(op.extent))
        ]
        return tirx.SeqStmt(copies) if len(copies) > 1 else copies[0]


def unroll_loops(function: Any) -> Any:
    """Write out ``T.unroll`` loops: the host compiler vectorizes a loop only where no loop is left inside it."""
    return function.with_body(_Unroll().visit_stmt(function.body))
