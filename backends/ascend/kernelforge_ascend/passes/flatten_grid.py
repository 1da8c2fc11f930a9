"""The launch grid becomes one dimension of AI cores."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import Range

from .rewriter import Rewriter, int32, is_const, rebuild_block


class _Flatten(Rewriter):
    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    def visit_var_(self, node: Any) -> Any:
        return self.values.get(node, node)

    def visit_for_(self, node: Any) -> Any:
        if node.thread_binding is None or not node.thread_binding.thread_tag.startswith("blockIdx"):
            return super().visit_for_(node)
        axes, inner = [], node
        while isinstance(inner, tirx.For) and inner.thread_binding is not None:
            axes.append((inner.loop_var, inner.extent))
            inner = inner.body
        block = tirx.Var("block", "int32")
        total: Any = int32(1)
        rest: Any = block
        for position, (variable, extent) in enumerate(axes):
            last = position == len(axes) - 1
            self.values[variable] = rest if last or is_const(extent, 1) else tirx.floormod(rest, extent)
            if is_const(extent, 1):
                self.values[variable] = int32(0)
                continue
            rest = rest if last else tirx.floordiv(rest, extent)
            total = extent if is_const(total, 1) else total * extent
        core = tirx.IterVar(Range(0, total), tirx.Var("blockIdx_x", "int32"), 1, "blockIdx.x")
        return tirx.For(block, 0, total, tirx.ForKind.THREAD_BINDING, self.visit(inner), core, {})

    def visit_sblock_(self, node: Any) -> Any:
        annotations = {key: value for key, value in node.annotations.items() if key != "tl.launch_threads"}
        return rebuild_block(node, body=self.visit(node.body), annotations=annotations)


def flatten_grid(function: Any) -> Any:
    """Turn the 1-, 2- or 3-dimensional grid of a PrimFunc into ``blockIdx.x`` alone, first axis fastest.

    An Ascend launch is a row of AI cores. Thread counts of ``T.Kernel`` are dropped: threads exist only inside
    vector functions.
    """
    return function.with_body(_Flatten().visit(function.body))
