"""Elementwise code becomes SIMT vector functions on the vector core; copies become DMAs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilelang import tvm
from tvm import tirx
from tvm.ir import Range

from .rewriter import (
    THREAD_LOCAL,
    BufferMap,
    LoweringError,
    Region,
    RootRewriter,
    ascend_copy,
    int32,
    is_const,
    is_global,
    is_vector,
    op_name,
    rebuild_block,
    sequence,
    span_of,
    walk,
)

VECTOR_FUNCTION = "SIMT_VF"
"""Name of the blocks TileLang turns into vector functions."""


def vector_function(body: Any, index: int, threads: int, local_buffers: list[Any]) -> Any:
    """Wrap a T.Parallel nest into TileLang's SIMT vector function number ``index``."""
    for axis, extent in (("z", 1), ("y", 1), ("x", threads)):
        thread = tirx.IterVar(Range(0, extent), tirx.Var(f"simtvf_t{axis}", "int32"), 1, f"threadIdx.{axis}")
        if axis == "z":
            body = tirx.AttrStmt("simtvf", "tl.simtvf_scope", int32(1), body)
        body = tirx.AttrStmt(thread, "thread_extent", int32(extent), body)
    annotations = {"tl.vf_source_index": tirx.IntImm("int64", index)}
    return tirx.SBlock([], [], [], VECTOR_FUNCTION, body, None, local_buffers, [], annotations)


def parallel_nest(extents: list[Any], body: Callable[[list[Any]], Any]) -> Any:
    """A T.Parallel nest over a box; ``body`` gets the loop variables."""
    variables = [tirx.Var(f"p{axis}", "int32") for axis in range(len(extents))]
    statement = body(variables)
    for variable, extent in reversed(list(zip(variables, extents, strict=True))):
        statement = tirx.For(variable, int32(0), extent, tirx.ForKind.PARALLEL, statement)
    return statement


def _scalar_access(nest: Any) -> Any:
    """Keep TileLang from vectorizing a nest that touches elements its SIMT vectors do not have (8 and 16 bits)."""
    narrow: list[bool] = []

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.BufferStore)):
            narrow.append(tvm.DataType(node.buffer.dtype).bits < 32)

    walk(nest, visit)
    if not any(narrow):
        return nest
    annotations = {**dict(nest.annotations or {}), "coalesced_width": int32(1)}
    return tirx.For(
        nest.loop_var, nest.min, nest.extent, nest.kind, nest.body, None, annotations, nest.step, span_of(nest)
    )


class _VectorRegions(RootRewriter):
    def __init__(self, function: Any, threads: int) -> None:
        self.threads = threads
        self.ub = BufferMap()
        self.functions = 0
        self.inside = False
        self.locals: BufferMap | None = None
        self.analyzer = tvm.arith.Analyzer()
        self.scalars = _control_scalars(function)

    def visit_buffer(self, buffer: Any) -> Any:
        if is_vector(buffer):
            return self.ub.setdefault(
                buffer, lambda: tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name, scope="shared.dyn")
            )
        if buffer.scope() in THREAD_LOCAL and self.locals is not None and buffer not in self.scalars:
            # A fresh buffer in each function: the threads of two functions share nothing.
            return self.locals.setdefault(
                buffer, lambda: tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name, scope=buffer.scope())
            )
        return buffer

    def _function(self, nest: Any) -> Any:
        """The vector function that runs a T.Parallel nest (given in terms of the kernel's own buffers)."""
        self.inside, self.locals = True, BufferMap()
        body = _scalar_access(self.visit(nest))
        result = vector_function(body, self.functions, self.threads, self.locals.values())
        self.inside, self.locals = False, None
        self.functions += 1
        return result

    def visit_for_(self, node: Any) -> Any:
        if node.kind == tirx.ForKind.PARALLEL and not self.inside:
            return self._function(node)
        if not self.inside:
            self.analyzer.bind(node.loop_var, Range.from_min_extent(node.min, node.extent))
        return super().visit_for_(node)

    def visit_evaluate_(self, node: Any) -> Any:
        name = op_name(node.value)
        if name == "tl.tileop.fill":
            return self._fill(Region.of(node.value.args[0]), node.value.args[1])
        if name == "tl.tileop.copy":
            return self._copy(Region.of(node.value.args[0]), Region.of(node.value.args[1]))
        lowered = name in ("tl.tileop.ascend_copy", "tl.tileop.gemm")
        if name.startswith("tl.tileop.") and not lowered and not self.inside:
            raise LoweringError(f"{name} has no lowering to Ascend; write it as T.Parallel code")
        return super().visit_evaluate_(node)

    def _fill(self, region: Region, value: Any) -> Any:
        dtype = region.buffer.dtype
        value = value if value.dtype == dtype else _converted(value, dtype)

        def body(here: list[Any]) -> Any:
            return tirx.BufferStore(region.buffer, value, [m + h for m, h in zip(region.mins, here, strict=True)])

        return self._function(parallel_nest(region.extents, body))

    def _copy(self, source: Region, target: Region) -> Any:
        outside = is_global(source.buffer), is_global(target.buffer)
        if source.buffer.dtype != target.buffer.dtype:
            raise LoweringError(
                f"copy {source.buffer.name} -> {target.buffer.name} converts; use T.cast inside T.Parallel"
            )
        if all(outside):
            raise LoweringError(
                f"copy {source.buffer.name} -> {target.buffer.name}: both are global; use shared memory"
            )
        if any(outside):
            return self._dma(source, target)
        return self._function(_elementwise(source, target))

    def _dma(self, source: Region, target: Region) -> Any:
        copy = ascend_copy(self.visit_region(source), self.visit_region(target))
        if is_global(source.buffer) and not _stays_inside(source, self.analyzer):
            # The DMA brings only what exists; the portable copy reads zeros beyond the edge.
            return sequence([self._fill(target, tirx.IntImm("int32", 0)), copy])
        return copy

    def finish_root(self, node: Any, body: Any) -> Any:
        buffers = [self.visit_buffer(b) for b in node.alloc_buffers]
        kept = [b for b in buffers if b.scope() not in THREAD_LOCAL or b in self.scalars]
        return rebuild_block(node, body=body, alloc_buffers=kept)


def _converted(value: Any, dtype: str) -> Any:
    if isinstance(value, (tirx.IntImm, tirx.FloatImm)) and dtype.startswith("float"):
        return tirx.FloatImm(dtype, float(value.value))
    if isinstance(value, tirx.IntImm):
        return tirx.IntImm(dtype, int(value))
    return tirx.Cast(dtype, value)


def _elementwise(source: Region, target: Region) -> Any:
    """target[...] = source[...] over boxes whose wide dimensions agree."""
    wide_source, wide_target = source.wide_dims(), target.wide_dims()
    if len(wide_source) != len(wide_target):
        raise LoweringError(
            f"copy {source.buffer.name} -> {target.buffer.name}: shapes {source.extents} and {target.extents}"
        )
    keep = wide_target or [0]
    keep_source = wide_source or [0]

    def body(here: list[Any]) -> Any:
        at_source, at_target = list(source.mins), list(target.mins)
        for variable, s, t in zip(here, keep_source, keep, strict=True):
            at_source[s], at_target[t] = _plus(at_source[s], variable), _plus(at_target[t], variable)
        return tirx.BufferStore(target.buffer, tirx.BufferLoad(source.buffer, at_source), at_target)

    return parallel_nest([target.extents[d] for d in keep], body)


def _plus(base: Any, offset: Any) -> Any:
    return offset if is_const(base, 0) else base + offset


def _stays_inside(region: Region, analyzer: Any) -> bool:
    """True if every index of the box is provably inside the buffer."""
    return all(
        analyzer.can_prove(minimum >= 0) and analyzer.can_prove(minimum + extent <= size)
        for minimum, extent, size in zip(region.mins, region.extents, region.buffer.shape, strict=True)
    )


def _control_scalars(function: Any) -> BufferMap:
    """Local scalars that the control program (outside T.Parallel) writes; vector functions may read them."""
    scalars = BufferMap()

    class Find(RootRewriter):
        def visit_for_(self, node: Any) -> Any:
            return node if node.kind == tirx.ForKind.PARALLEL else super().visit_for_(node)

        def visit_buffer_store_(self, node: Any) -> Any:
            if node.buffer.scope() in THREAD_LOCAL:
                scalars[node.buffer] = True
            return node

    Find().visit(function.body)
    return scalars


def vector_regions(function: Any, threads: int = 128) -> Any:
    """Turn the elementwise parts of a PrimFunc into SIMT vector functions of ``threads`` threads.

    ``T.Parallel`` nests, fills and copies inside a core become vector functions; shared and fragment buffers become
    UB; copies between global memory and UB become DMAs, preceded by
    a fill with zero where the box may leave the tensor. Scalars used by a function alone move into it.

    The result is right for one vector core per block; :func:`split_rows` spreads it over two.

    Raises:
        LoweringError: for tile operators without a lowering.
    """
    pass_ = _VectorRegions(function, threads)
    return function.with_body(pass_.visit(function.body))


def vector_function_blocks(node: Any) -> list[Any]:
    """The vector functions below a statement, in program order."""
    found: list[Any] = []
    walk(node, lambda n: found.append(n) if isinstance(n, tirx.SBlock) and n.name_hint == VECTOR_FUNCTION else None)
    return found
