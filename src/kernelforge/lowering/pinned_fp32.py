"""fp32 arithmetic as calls that no rewriting rule knows.

TVM's simplifier rewrites ``(x + c) - c``, ``x * 0`` and others as if fp32 were the reals, and the "c" printer writes
constants with six digits. Opaque pure calls pass both untouched; the host compiler sees through their inline bodies.
"""

from __future__ import annotations

import struct
from typing import Any

from .tir import PyStmtExprMutator, called, mutator, rebuild_call, tirx

FROM_BITS, TO_BITS, ADD, SUB, MUL = "kf_f", "kf_i", "kf_add", "kf_sub", "kf_mul"


def _call(dtype: str, name: str, *arguments: Any) -> Any:
    return tirx.call_pure_extern(dtype, name, *arguments)


def _is_fp32(expression: Any) -> bool:
    return str(expression.dtype) == "float32"


@mutator
class _Pin(PyStmtExprMutator):
    def visit_float_imm_(self, op: Any) -> Any:
        if not _is_fp32(op):
            return op
        (bits,) = struct.unpack("<i", struct.pack("<f", op.value))
        return _call("float32", FROM_BITS, tirx.IntImm("int32", bits))

    def _binary(self, op: Any, name: str) -> Any:
        a, b = self.visit_expr(op.a), self.visit_expr(op.b)
        return _call("float32", name, a, b) if _is_fp32(op) else type(op)(a, b)

    def visit_add_(self, op: Any) -> Any:
        return self._binary(op, ADD)

    def visit_sub_(self, op: Any) -> Any:
        return self._binary(op, SUB)

    def visit_mul_(self, op: Any) -> Any:
        return self._binary(op, MUL)

    def visit_call_(self, op: Any) -> Any:
        name = called(op)
        if name.startswith("tl."):  # tile operators keep their regions; their scalars are not arithmetic
            return op
        arguments = [self.visit_expr(argument) for argument in op.args]
        if name == "tirx.reinterpret":
            source, result = str(op.args[0].dtype), str(op.dtype)
            if (source, result) == ("int32", "float32"):
                return _call("float32", FROM_BITS, *arguments)
            if (source, result) == ("float32", "int32"):
                return _call("int32", TO_BITS, *arguments)
        return rebuild_call(op, arguments)


def pin_fp32(function: Any) -> Any:
    """Spell fp32 add, subtract, multiply, constants and reinterpretation as opaque calls."""
    return function.with_body(_Pin().visit_stmt(function.body))
