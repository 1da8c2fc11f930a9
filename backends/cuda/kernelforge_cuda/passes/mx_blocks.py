"""MX block accumulation on bfloat16 tensor cores, by the device function of ``mx_block.h``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import (
    PyStmtExprMutator,
    called,
    fragment,
    layout,
    mutator,
    post_order,
    rebuild_call,
    tirx,
)
from kernelforge.numerics.block_accumulate import A_FORMATS

NAME = "mx_block_accumulate"
FUNCTION = "kf::mx_block_accumulate"
BLOCK, WARP, WARP_ROWS, WORD = 32, 32, 64, 4
UNTAKEN = A_FORMATS.index("e4m3_f32")
"""Its scales are no powers of two, so they cannot be part of the operands."""


@dataclass(frozen=True)
class Work:
    """The arguments of the device function: extents of the tiles, and the block's threads."""

    format: int
    rows: int
    columns: int
    depth: int
    threads: int

    @property
    def warps_down(self) -> int:
        return max(self.rows // WARP_ROWS, 1)

    @property
    def warp_rows(self) -> int:
        return min(self.rows, WARP_ROWS)

    @property
    def warp_columns(self) -> int:
        return self.columns * self.warps_down * WARP // self.threads

    @property
    def fits(self) -> bool:
        """Whether warps divide the tile into tensor-core tiles of 16 x 8."""
        warps = self.threads // WARP
        return (
            self.format != UNTAKEN
            and self.rows % self.warp_rows == 0
            and self.warp_rows % 16 == 0
            and self.threads % WARP == 0
            and warps % self.warps_down == 0
            and self.columns % (8 * (warps // self.warps_down)) == 0
        )

    @property
    def scratch(self) -> int:
        """Bytes of ``MxBlocks::Scratch``."""
        blocks = self.depth // BLOCK
        return -(-(blocks * (self.rows * 68 + self.columns * 8) + self.threads // WARP * 4) // 16) * 16

    def sums(self, i: Any, j: Any) -> tuple[Any, Any]:
        """Thread, and place in its registers, of a running sum (PTX ISA, "mma.m16n8k16", accumulators)."""
        warp = j // self.warp_columns * self.warps_down + i // self.warp_rows
        thread = warp * WARP + i % 8 * 4 + j % 8 // 2
        tile = i % self.warp_rows // 16 * (self.warp_columns // 8) + j % self.warp_columns // 8
        return thread, tile * 4 + i % 16 // 8 * 2 + j % 2

    def weights(self, i: Any, j: Any) -> Any:
        """Place of a byte of packed weights, as ``MxBlocks::weight_chunk`` has it."""
        blocks = self.depth // BLOCK
        chunk = j // 16
        if blocks % 8 == 0:
            chunk = chunk ^ (i % 8)
        elif blocks % 4 == 0:
            chunk = chunk ^ (i // 2 % 4)
        return (i * blocks + chunk) * 16 + j % 16


def _threads(function: Any) -> int:
    """Threads of a block, as TileLang notes them at the kernel's outer block."""
    found: list[int] = []

    def visit(node: Any) -> None:
        if isinstance(node, tirx.SBlock) and "tl.launch_threads" in node.annotations:
            found.append(math.prod(int(extent) for extent in node.annotations["tl.launch_threads"]))

    post_order(function.body, visit)
    (threads,) = found
    return threads


def _work(composite: Composite, threads: int) -> Work:
    acc, w = composite.operands[0].buffer, composite.operands[3].buffer
    rows, columns = (int(extent) for extent in acc.shape)
    return Work(composite.parameters["a_format"], rows, columns, int(w.shape[1]) * 2, threads)


def _address(buffer: Any) -> Any:
    return tirx.address_of(tirx.BufferLoad(buffer, [0] * len(buffer.shape)))


def _call(composite: Composite, work: Work, scratch: Any) -> Any:
    template = f"{FUNCTION}<{work.format}, {work.rows}, {work.columns}, {work.depth}, {work.threads}>"
    tiles = [operand.buffer for operand in composite.operands[:5]]
    return tirx.Evaluate(tirx.call_extern("void", template, *(_address(tile) for tile in (*tiles, scratch))))


@mutator
class _Allocate(PyStmtExprMutator):
    """Buffers join the block that allocates the running sums, with their layouts; what nothing uses any more leaves."""

    def __init__(self, layouts: dict[Any, Any], scratch: dict[Any, Any], used: set[Any]) -> None:
        super().__init__()
        self.layouts, self.scratch, self.used = layouts, scratch, used

    def visit_sblock_(self, op: Any) -> Any:
        body = self.visit_stmt(op.body)
        kept = [buffer for buffer in op.alloc_buffers if buffer in self.used]
        annotations = dict(op.annotations)
        layouts = {buffer.data: self.layouts[buffer] for buffer in kept if buffer in self.layouts}
        if layouts:
            annotations["layout_map"] = {**dict(annotations.get("layout_map", {})), **layouts}
        kept += [self.scratch[buffer] for buffer in op.alloc_buffers if buffer in self.scratch]
        return tirx.SBlock(
            op.iter_vars, op.reads, op.writes, op.name_hint, body, op.init, kept, op.match_buffers, annotations
        )


@mutator
class _CopyWords(PyStmtExprMutator):
    """Copies of scales move four bytes at a time, the least that a copy to shared memory can do asynchronously."""

    def __init__(self, tiles: set[Any]) -> None:
        super().__init__()
        self.tiles = tiles

    def visit_call_(self, op: Any) -> Any:
        if called(op) != "tl.tileop.copy":
            return rebuild_call(op, [self.visit_expr(argument) for argument in op.args])
        source, target = (region.args[0].buffer for region in op.args[:2])
        if target not in self.tiles or any(int(buffer.shape[-1]) % WORD for buffer in (source, target)):
            return op
        return tirx.Call(
            op.dtype, op.op, op.args, annotations={**op.annotations, "coalesced_width": tirx.IntImm("int32", WORD)}
        )


def _used(body: Any) -> set[Any]:
    used: set[Any] = set()

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.BufferStore)):
            used.add(node.buffer)

    post_order(body, visit)
    return used


def take_mx_blocks(function: Any) -> Any:
    """Take ``mx_block_accumulate`` whole: one call of a device function; its tiles get the layouts that it reads.

    A region whose tile the block's warps do not divide evenly keeps its portable body.
    """
    regions = [composite for composite in composites_in(function) if composite.name == NAME]
    if not regions:
        return function
    threads = _threads(function)
    if not all(_work(composite, threads).fits for composite in regions):
        return function
    layouts: dict[Any, Any] = {}
    scratch: dict[Any, Any] = {}
    for composite in regions:
        work = _work(composite, threads)
        acc, w = composite.operands[0].buffer, composite.operands[3].buffer
        layouts[acc] = fragment(acc.shape, work.sums)
        layouts[w] = layout(w.shape, work.weights)
        scratch[acc] = tirx.decl_buffer((work.scratch,), "uint8", f"{acc.name}_scratch", scope="shared.dyn")

    def take(composite: Composite) -> Any:
        return _call(composite, _work(composite, threads), scratch[composite.operands[0].buffer])

    function = take_composites(function, {NAME: take}, keep_others=True)
    body = _Allocate(layouts, scratch, _used(function.body)).visit_stmt(function.body)
    scales = {composite.operands[side].buffer for composite in regions for side in (2, 4)}
    return function.with_body(_CopyWords(scales).visit_stmt(body))
