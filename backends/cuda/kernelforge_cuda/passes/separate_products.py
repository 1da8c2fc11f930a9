"""fp32 products that nothing fuses with the sum they enter."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, called, mutator, rebuild_call, text, tirx, tvm

_PRODUCT = "tl.fmul"
"""TileLang's multiplication, rounded to nearest, that stays an instruction of its own."""


@mutator
class _Separate(PyStmtExprMutator):
    def visit_mul_(self, op: Any) -> Any:
        a, b = self.visit_expr(op.a), self.visit_expr(op.b)
        if text(op.dtype) != "float32":
            return tirx.Mul(a, b)
        return tirx.Call("float32", tvm.ir.Op.get(_PRODUCT), [a, b])

    def visit_call_(self, op: Any) -> Any:
        if called(op).startswith("tl.tileop."):  # regions, no arithmetic
            return op
        return rebuild_call(op, [self.visit_expr(argument) for argument in op.args])


def separate_products(function: Any) -> Any:
    """Spell fp32 multiplication as ``tl.fmul``, which rounds on its own.

    From sm_100 on TileLang prints ``a * b + c`` over pairs as a fused multiply-add (``fma.rn.f32x2``), which nvcc's
    ``-fmad=false`` does not undo. The fused form has other bits wherever the product is inexact or overflows.
    """
    return function.with_body(_Separate().visit_stmt(function.body))
