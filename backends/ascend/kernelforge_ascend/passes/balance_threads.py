"""Every vector function gets a number of threads that shares its iterations evenly."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import Range

from .rewriter import Rewriter, int32, rebuild_block, static
from .vector_regions import VECTOR_FUNCTION


def even_share(iterations: int, threads: int) -> int:
    """The largest number of threads, at most ``threads``, that divides the iterations."""
    return max(t for t in range(1, threads + 1) if iterations % t == 0)


def _iterations(nest: Any) -> int:
    while isinstance(nest, tirx.AttrStmt):
        nest = nest.body
    total = 1
    while isinstance(nest, tirx.For) and nest.kind == tirx.ForKind.PARALLEL:
        total *= static(nest.extent, "the extent of T.Parallel")
        nest = nest.body
    return total


class _Balance(Rewriter):
    def __init__(self) -> None:
        self.iterations = 0

    def visit_sblock_(self, node: Any) -> Any:
        if node.name_hint != VECTOR_FUNCTION:
            return super().visit_sblock_(node)
        self.iterations = _iterations(node.body)
        return rebuild_block(node, body=self.visit(node.body))

    def visit_attr_stmt_(self, node: Any) -> Any:
        if node.attr_key != "thread_extent" or node.node.thread_tag != "threadIdx.x":
            return super().visit_attr_stmt_(node)
        threads = even_share(self.iterations, int(node.value))
        axis = tirx.IterVar(Range(0, threads), node.node.var, node.node.iter_type, node.node.thread_tag)
        return tirx.AttrStmt(axis, node.attr_key, int32(threads), node.body)


def balance_threads(function: Any) -> Any:
    """Reduce the threads of each vector function to a divisor of its iterations.

    With a remainder TileLang puts the body, and the barriers it inserts into it, under a condition that only some
    of the threads meet.
    """
    return function.with_body(_Balance().visit(function.body))
