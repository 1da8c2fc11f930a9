"""Native mode's products: gemms of bfloat16 with float32 accumulators."""

from __future__ import annotations

from typing import Any

from .composites import Composite, composites_in, take_composites
from .tir import COMPOSITE, PyStmtExprMutator, called, gemm, mutator, rebuild_call, tirx

ROUNDED_DOT = "rounded_dot"
"""The composite of ``numerics/tile/rounded_dot.py``."""


def rounds_dots(function: Any) -> bool:
    """Whether a portable function leaves the rounding of some product to the device."""
    return any(composite.name == ROUNDED_DOT for composite in composites_in(function))


@mutator
class _Retype(PyStmtExprMutator):
    """Tiles of bits become tiles of bfloat16; elementwise code goes on reading and writing their bits."""

    def __init__(self, tiles: dict[Any, Any]) -> None:
        super().__init__()
        self.tiles = tiles

    def visit_sblock_(self, op: Any) -> Any:
        body = self.visit_stmt(op.body)
        allocated = [self.tiles.get(buffer, buffer) for buffer in op.alloc_buffers]
        return tirx.SBlock(
            op.iter_vars, op.reads, op.writes, op.name_hint, body, op.init, allocated, op.match_buffers, op.annotations
        )

    def visit_attr_stmt_(self, op: Any) -> Any:
        value = op.value if op.attr_key == COMPOSITE else self.visit_expr(op.value)
        return tirx.AttrStmt(op.node, op.attr_key, value, self.visit_stmt(op.body))

    def visit_buffer_load_(self, op: Any) -> Any:
        indices = [self.visit_expr(index) for index in op.indices]
        if op.buffer not in self.tiles:
            return tirx.BufferLoad(op.buffer, indices)
        return tirx.reinterpret("uint16", tirx.BufferLoad(self.tiles[op.buffer], indices))

    def visit_buffer_store_(self, op: Any) -> Any:
        value, indices = self.visit_expr(op.value), [self.visit_expr(index) for index in op.indices]
        if op.buffer not in self.tiles:
            return tirx.BufferStore(op.buffer, value, indices)
        return tirx.BufferStore(self.tiles[op.buffer], tirx.reinterpret("bfloat16", value), indices)

    def visit_call_(self, op: Any) -> Any:
        if called(op) == "tl.region":
            load = op.args[0]
            if load.buffer in self.tiles:
                raise ValueError(
                    f"{load.buffer.name} is multiplied in native mode and taken by a tile operator too; "
                    "fill and read it with T.Parallel"
                )
            return op
        return rebuild_call(op, [self.visit_expr(argument) for argument in op.args])


def lower_rounded_dots(function: Any) -> Any:
    """Give every ``rounded_dot`` to ``T.gemm`` on bfloat16 with float32 sums; other composites stay.

    Raises:
        ValueError: an operand is not elementwise code's alone.
    """
    tiles: dict[Any, Any] = {}

    def typed(buffer: Any) -> Any:
        if buffer not in tiles:
            tiles[buffer] = tirx.decl_buffer(buffer.shape, "bfloat16", buffer.name, scope=buffer.scope())
        return tiles[buffer]

    def take(composite: Composite) -> Any:
        a, b, out = (load.buffer for load in composite.operands)
        return tirx.Evaluate(gemm(typed(a), typed(b), out, bool(composite.parameters["transpose_b"])))

    function = take_composites(function, {ROUNDED_DOT: take}, keep_others=True)
    return function.with_body(_Retype(tiles).visit_stmt(function.body)) if tiles else function
