"""Grid axes become parameters."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, mutator, prim_func, tirx


@mutator
class _Bind(PyStmtExprMutator):
    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[str, Any] = {}

    def visit_for_(self, op: Any) -> Any:
        if op.thread_binding is None:
            return op  # block axes are the outermost loops
        axis = str(op.thread_binding.thread_tag)[-1]
        index = tirx.Var(f"kf_block_{axis}", "int32")
        self.parameters[axis] = index
        return self.visit_stmt(tirx.stmt_functor.substitute(op.body, {op.loop_var: index}))


def block_parameters(function: Any) -> Any:
    """Compile one block: each loop over ``blockIdx`` becomes a scalar parameter; the launcher spreads the grid."""
    bind = _Bind()
    body = bind.visit_stmt(function.body)
    return prim_func(function, body, [bind.parameters[axis] for axis in sorted(bind.parameters)])
