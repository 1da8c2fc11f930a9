"""Every task reaches a tile through a view of its own, which spares TileLang's scheduler most of its questions."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from .persistent_grid import is_persistent
from .rewriter import BufferMap, Region, RootRewriter, is_global, op_name, span_of, walk
from .stage_operands import TASK
from .vector_regions import VECTOR_FUNCTION


class _Views(RootRewriter):
    def __init__(self, parts: BufferMap) -> None:
        self.parts = parts
        self.loads, self.stores = BufferMap(), BufferMap()
        self.inside = False

    def visit(self, node: Any) -> Any:
        if isinstance(node, tirx.Stmt) and not self.inside:
            self.loads, self.stores = BufferMap(), BufferMap()
        return super().visit(node)

    def visit_buffer(self, buffer: Any) -> Any:
        return self._view(buffer, self.loads)

    def _view(self, buffer: Any, views: BufferMap) -> Any:
        if is_global(buffer) or buffer in self.parts:
            return buffer
        return views.setdefault(
            buffer,
            lambda: tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name, buffer.data, scope=buffer.scope()),
        )

    def visit_buffer_store_(self, node: Any) -> Any:
        indices = self.visit_all(node.indices)
        value = self.visit(node.value)
        return tirx.BufferStore(self._view(node.buffer, self.stores), value, indices, span=span_of(node))

    def visit_attr_stmt_(self, node: Any) -> Any:
        if node.attr_key != TASK:
            return super().visit_attr_stmt_(node)
        parts, self.parts = self.parts, BufferMap()  # nothing waits within a task
        try:
            return super().visit_attr_stmt_(node)
        finally:
            self.parts = parts

    def visit_sblock_(self, node: Any) -> Any:
        if node.name_hint != VECTOR_FUNCTION:
            return super().visit_sblock_(node)
        self.inside = True
        try:
            return super().visit_sblock_(node)
        finally:
            self.inside = False


def own_views(function: Any) -> Any:
    """Give every task its own view of each tile it accesses.

    Of two accesses of one storage through two buffers TileLang assumes that they conflict. Through the same buffer it
    asks z3 whether their regions meet, some thousand times a kernel, and for a tile that is always read and written as
    a whole the answer is known. Tiles that are copied in parts keep their buffer, as their parts do not conflict. So do
    all where tiles may share memory (a kernel that is not persistent): TileLang sees by the buffer which of them live.
    """
    if not is_persistent(function):
        return function
    parts = BufferMap()

    def visit(node: Any) -> None:
        if op_name(node) == "tl.region" and not Region.of(node).covers_buffer():
            parts[node.args[0].buffer] = True

    walk(function.body, visit)
    return function.with_body(_Views(parts).visit(function.body))
