"""Index bindings are substituted, so that later passes see what an index is."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from .rewriter import Rewriter, sequence, span_of, walk


def _is_index_arithmetic(value: Any) -> bool:
    pure = [value.dtype in ("int32", "int64")]

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.Call)):
            pure[0] = False

    walk(value, visit)
    return pure[0]


class _Inline(Rewriter):
    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    def visit_var_(self, node: Any) -> Any:
        return self.values.get(node, node)

    def visit_seq_stmt_(self, node: Any) -> Any:
        kept = []
        for statement in node.seq:
            if isinstance(statement, tirx.Bind):
                value = self.visit(statement.value)
                if _is_index_arithmetic(value):
                    self.values[statement.var] = value
                    continue
                statement = tirx.Bind(statement.var, value, span_of(statement))
                kept.append(statement)
            else:
                kept.append(self.visit(statement))
        return sequence(kept or [tirx.Evaluate(tirx.IntImm("int32", 0))])


def inline_bindings(function: Any) -> Any:
    """Substitute integer bindings without loads or calls (``row = by * block_M``) into their uses.

    Bindings of loaded values stay: they must be read once, where the kernel reads them.
    """
    return function.with_body(_Inline().visit(function.body))
