"""The block axis that grows with the batch on the axis of CUDA's grid that may be long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, mutator, post_order, text, tirx

AXES = ("blockIdx.x", "blockIdx.y", "blockIdx.z")


def exchanged(fixed: Sequence[bool]) -> int | None:
    """The axis that changes places with x: the only one whose extent is not fixed, if x's is; else None."""
    growing = [axis for axis, constant in enumerate(fixed) if not constant]
    return growing[0] if len(growing) == 1 and growing[0] > 0 else None


@mutator
class _Rename(PyStmtExprMutator):
    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self._names = names

    def visit_for_(self, op: Any) -> Any:
        body, bound = self.visit_stmt(op.body), op.thread_binding
        if bound is not None:
            tag = text(bound.thread_tag)
            bound = tirx.IterVar(bound.dom, bound.var, bound.iter_type, self._names.get(tag, tag))
        return tirx.For(op.loop_var, op.min, op.extent, op.kind, body, bound, op.annotations, op.step)


def long_axis_first(function: Any) -> Any:
    """Exchange the block axes x and y, or x and z, where rows or tokens lie along the latter.

    A grid has at most 65535 blocks along y and z but 2^31 - 1 along x (CUDA C++ Programming Guide, compute
    capabilities table), and portable kernels put rows where it suits their loops.
    """
    fixed: dict[str, bool] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tirx.For) and node.thread_binding is not None:
            fixed[text(node.thread_binding.thread_tag)] = isinstance(node.extent, tirx.IntImm)

    post_order(function.body, visit)
    other = exchanged([fixed[axis] for axis in AXES if axis in fixed])
    if other is None:
        return function
    x, moved = AXES[0], AXES[other]
    return function.with_body(_Rename({x: moved, moved: x}).visit_stmt(function.body))
