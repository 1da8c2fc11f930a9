"""The range of each block index, said where the compiler sees it."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, mutator, tirx


@mutator
class _State(PyStmtExprMutator):
    def visit_for_(self, op: Any) -> Any:
        if op.thread_binding is None:
            return op  # block axes are the outermost loops
        inside = tirx.And(tirx.GE(op.loop_var, tirx.IntImm("int32", 0)), tirx.LT(op.loop_var, op.extent))
        body = tirx.IfThenElse(inside, self.visit_stmt(op.body), None)
        return tirx.For(op.loop_var, op.min, op.extent, op.kind, body, op.thread_binding, op.annotations)


def state_block_range(function: Any) -> Any:
    """Put the block under ``if 0 <= index < extent``.

    Once the index is a parameter, nothing else says so, and every access to global memory would carry a check of its
    own, which keeps loops from being vectorized.
    """
    return function.with_body(_State().visit_stmt(function.body))
