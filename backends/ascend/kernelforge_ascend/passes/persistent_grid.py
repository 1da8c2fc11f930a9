"""A fixed row of cores takes the tiles of the grid in turns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tilelang import tvm
from tvm import tirx
from tvm.ir import Range

from .rewriter import RootRewriter, int32, is_vector, op_name, rebuild_block, root_block, walk

CUBE_CORES = 32
"""AI cores of an Ascend 950, each a cube core with two vector cores."""

VECTOR_CORES = 2 * CUBE_CORES

TILES_BYTES = 124 * 1024
"""Half of a vector core's UB: beyond it, tiles that are double-buffered and never share memory may not fit."""

TURN = "turn"


def cores_for(function: Any) -> int:
    """Blocks that run at once: one per cube core where the kernel has a gemm, else one per vector core."""
    gemms: list[Any] = []
    walk(function.body, lambda n: gemms.append(n) if op_name(n) == "tl.tileop.gemm" else None)
    return CUBE_CORES if gemms else VECTOR_CORES


class _Persistent(RootRewriter):
    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.total: Any = None
        self.block: Any = None
        self.core = tirx.Var("core", "int32")
        self.turn = tirx.Var(TURN, "int32")

    def visit_var_(self, node: Any) -> Any:
        return self.turn * self.cores + self.core if self.block is not None and node.same_as(self.block) else node

    def visit_for_(self, node: Any) -> Any:
        if node.thread_binding is None:
            return super().visit_for_(node)
        self.block, self.total = node.loop_var, node.extent
        launched = tirx.min(node.extent, int32(self.cores))
        axis = tirx.IterVar(Range(0, launched), tirx.Var("blockIdx_x", "int32"), 1, "blockIdx.x")
        return tirx.For(self.core, 0, launched, tirx.ForKind.THREAD_BINDING, self.visit(node.body), axis, {})

    def finish_root(self, node: Any, body: Any) -> Any:
        turns = tirx.floordiv(self.total - self.core + (self.cores - 1), int32(self.cores))
        return rebuild_block(node, body=tirx.For(self.turn, int32(0), turns, tirx.ForKind.SERIAL, body))


def persistent_grid(function: Any) -> Any:
    """Launch at most as many blocks as the device has cores; core c computes tiles c, c + cores, c + 2 * cores, ...

    A block's set-up is then paid once per core, loads of the next tile overlap the end of the last one, and global
    scratch is one slice per core. Left alone: a grid known to fit the cores, and a kernel whose tiles need most of UB,
    since UB may not be shared between tiles here (:func:`is_persistent`).
    """
    cores = cores_for(function)
    (grid,) = _loops(function, lambda loop: loop.thread_binding is not None)
    few = isinstance(grid.extent, tirx.IntImm) and int(grid.extent) <= cores
    if few or tile_bytes(function) > TILES_BYTES:
        return function
    return function.with_body(_Persistent(cores).visit(function.body))


def is_persistent(function: Any) -> bool:
    """Whether :func:`persistent_grid` changed the grid.

    TileLang must then not give two tiles the same UB memory: it places them after it has placed the waits, and no wait
    orders the last use of one tile in a turn and the first use of another in the next.
    """
    return bool(_loops(function, lambda loop: loop.loop_var.name == TURN))


def launched_cores(body: Any) -> int | None:
    """From a lowered function's body, the most blocks to launch; None where every tile has a block.

    The simplifier may have rewritten the smaller of tiles and cores, ``min(2 * n, 32)`` to ``min(n, 16) * 2``: what
    counts is how large it can become.
    """
    extents: list[Any] = []

    def visit(node: Any) -> None:
        launch = isinstance(node, tirx.AttrStmt) and node.attr_key == "thread_extent"
        if launch and node.node.thread_tag == "blockIdx.x":
            extents.append(node.value)

    walk(body, visit)
    analyzer = tvm.arith.Analyzer()
    most = min((int(analyzer.const_int_bound(extent).max_value) for extent in extents), default=VECTOR_CORES + 1)
    return most if most <= VECTOR_CORES else None


def tile_bytes(function: Any) -> int:
    """Bytes of all tiles in a vector core's memory."""
    tiles = [buffer for buffer in root_block(function).alloc_buffers if is_vector(buffer)]
    return sum(math.prod(int(e) for e in b.shape) * tvm.DataType(b.dtype).bits // 8 for b in tiles)


def _loops(function: Any, wanted: Callable[[Any], bool]) -> list[Any]:
    found: list[Any] = []
    walk(function.body, lambda n: found.append(n) if isinstance(n, tirx.For) and wanted(n) else None)
    return found
