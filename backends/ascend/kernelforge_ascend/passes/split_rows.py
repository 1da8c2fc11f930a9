"""The rows of a mixed kernel's tiles are halved over the two vector cores of a block."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.ir import Range

from .rewriter import (
    BufferMap,
    Region,
    RootRewriter,
    ascend_copy,
    int32,
    is_const,
    is_global,
    op_name,
    rebuild_block,
    rebuild_for,
    root_block,
    span_of,
    walk,
)
from .vector_regions import vector_function_blocks

CORES = 2
"""Vector cores beside each cube core of an Ascend 950."""


class _NotSplittable(Exception):
    """The kernel's rows cannot be halved; one vector core does all of them."""


class _Function:
    """What a vector function does with the rows of UB buffers."""

    def __init__(self, block: Any) -> None:
        self.loop = _row_loop(block.body)
        self.reads: list[tuple[Any, bool]] = []  # buffer, whether its row is the loop's row
        self.writes: list[tuple[Any, bool]] = []
        self.writes_global = False
        self.split = self.loop is not None and _even(self.loop.extent)
        atomics: list[Any] = []
        walk(block.body, lambda n: atomics.append(n) if _is_effect(n) else None)
        walk(block.body, self._visit)
        for call in atomics:
            walk(call, self._visit_atomic)

    def _row(self, buffer: Any, indices: Any) -> bool:
        if self.loop is None or not indices:
            return False
        size = buffer.shape[0]
        same_rows = isinstance(size, tirx.IntImm) and int(size) == int(self.loop.extent)
        return same_rows and indices[0].same_as(self.loop.loop_var)

    def _visit(self, node: Any) -> None:
        if isinstance(node, tirx.BufferLoad) and _in_ub(node.buffer):
            self.reads.append((node.buffer, self._row(node.buffer, node.indices)))
        elif isinstance(node, tirx.BufferStore):
            if _in_ub(node.buffer):
                self.writes.append((node.buffer, self._row(node.buffer, node.indices)))
            elif is_global(node.buffer):
                self.writes_global = True

    def _visit_atomic(self, node: Any) -> None:
        if isinstance(node, tirx.BufferLoad):
            if _in_ub(node.buffer):
                self.writes.append((node.buffer, self._row(node.buffer, node.indices)))
            elif is_global(node.buffer):
                self.writes_global = True


def _is_effect(node: Any) -> bool:
    return isinstance(node, tirx.Evaluate) and isinstance(node.value, tirx.Call)


def _in_ub(buffer: Any) -> bool:
    return buffer.scope() == "shared.dyn"


def _even(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) % CORES == 0


def _row_loop(node: Any) -> Any:
    while isinstance(node, tirx.AttrStmt):
        node = node.body
    if isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL and is_const(node.min, 0):
        return node
    return None


def _row_axis(region: Region, rows: int) -> int | None:
    """The dimension of a box that holds ``rows`` rows: the first that long."""
    for axis, extent in enumerate(region.extents):
        if is_const(extent, rows):
            return axis
    return None


class _Plan:
    """Which UB buffers and vector functions are halved; everything else is done twice, once on each core."""

    def __init__(self, function: Any) -> None:
        self.functions = [_Function(block) for block in vector_function_blocks(function.body)]
        self.copies: list[tuple[Region, Region]] = []
        self.split = BufferMap()
        walk(function.body, self._collect)
        for buffer in root_block(function).alloc_buffers:
            if _in_ub(buffer):
                self.split[buffer] = _even(buffer.shape[0])
        self._settle()

    def _collect(self, node: Any) -> None:
        if op_name(node) == "tl.tileop.ascend_copy":
            self.copies.append((Region.of(node.args[0]), Region.of(node.args[1])))

    def _repeat(self, buffer: Any) -> bool:
        changed = bool(self.split.get(buffer))
        self.split[buffer] = False
        return changed

    def _settle(self) -> None:
        while any([self._settle_function(f) for f in self.functions] + [self._settle_copy(*c) for c in self.copies]):
            pass
        for source, target in self.copies:
            if source.buffer.scope() == "shared.l0c" and not self.split.get(target.buffer):
                raise _NotSplittable(f"the rows of {target.buffer.name} are not used one by one")
            if _in_ub(source.buffer) and not self.split.get(source.buffer):
                axis = source.wide_dims()[0] if source.wide_dims() else None
                if axis is None or not _even(source.extents[axis]):
                    raise _NotSplittable(f"the copy of {source.buffer.name} has no even dimension")

    def _settle_function(self, function: _Function) -> bool:
        changed = False
        if function.split:
            if any(not row or not self.split.get(buffer) for buffer, row in function.writes):
                function.split = False
                changed = True
            else:
                for buffer, row in function.reads:
                    if not row and self.split.get(buffer):
                        changed |= self._repeat(buffer)
        if not function.split:
            for buffer, _ in function.reads + function.writes:
                changed |= self._repeat(buffer)
        return changed

    def _settle_copy(self, source: Region, target: Region) -> bool:
        for region, other in ((source, target), (target, source)):
            if _in_ub(region.buffer) and self.split.get(region.buffer):
                rows = int(region.buffer.shape[0])
                whole = is_const(region.mins[0], 0) and is_const(region.extents[0], rows)
                if not whole or _row_axis(other, rows) is None:
                    return self._repeat(region.buffer)
        return False


class _SplitRows(RootRewriter):
    def __init__(self, plan: _Plan | None) -> None:
        self.plan = plan
        self.sid = tirx.Var("sid", "int32")
        self.cores = CORES if plan is not None else 1
        self.halves = BufferMap()
        self.position = 0
        self.function: _Function | None = None

    def _is_split(self, buffer: Any) -> bool:
        return self.plan is not None and bool(self.plan.split.get(buffer))

    def visit_buffer(self, buffer: Any) -> Any:
        if not self._is_split(buffer):
            return buffer
        shape = [int32(int(buffer.shape[0]) // CORES), *list(buffer.shape)[1:]]
        return self.halves.setdefault(
            buffer, lambda: tirx.decl_buffer(shape, buffer.dtype, buffer.name, scope=buffer.scope())
        )

    # -- vector functions ------------------------------------------------------------------------------------

    def visit_for_(self, node: Any) -> Any:
        if node.thread_binding is not None and node.thread_binding.thread_tag == "blockIdx.x":
            core = tirx.IterVar(Range(0, self.cores), tirx.Var("cthread", "int32"), 1, "cthread")
            body = tirx.For(
                self.sid, int32(0), int32(self.cores), tirx.ForKind.THREAD_BINDING, self.visit(node.body), core, {}
            )
            return rebuild_for(node, node.min, node.extent, body)
        if self.function is not None and self.function.split and node.same_as(self.function.loop):
            return rebuild_for(node, node.min, int32(int(node.extent) // CORES), self.visit(node.body))
        return super().visit_for_(node)

    def _split_row(self) -> Any:
        function = self.function
        return function.loop.loop_var if function is not None and function.split else None

    def visit_var_(self, node: Any) -> Any:
        row = self._split_row()
        if row is not None and node.same_as(row):
            half = int(self.function.loop.extent) // CORES  # type: ignore[union-attr]
            return node + self.sid * half
        return node

    def _indices(self, buffer: Any, indices: Any) -> list[Any]:
        visited = self.visit_all(indices)
        if self._is_split(buffer) and self._split_row() is not None:
            visited[0] = indices[0]  # the row on this core, not in the tile
        return visited

    def visit_buffer_load_(self, node: Any) -> Any:
        return tirx.BufferLoad(
            self.visit_buffer(node.buffer), self._indices(node.buffer, node.indices), span=span_of(node)
        )

    def visit_buffer_store_(self, node: Any) -> Any:
        store = tirx.BufferStore(
            self.visit_buffer(node.buffer),
            self.visit(node.value),
            self._indices(node.buffer, node.indices),
            span=span_of(node),
        )
        return self._once(store) if is_global(node.buffer) else store

    def _once(self, statement: Any) -> Any:
        """A global effect of a function that both cores run happens on the first alone."""
        if self.plan is None or self.function is None or self.function.split:
            return statement
        return tirx.IfThenElse(tirx.EQ(self.sid, int32(0)), statement, None)

    def visit_sblock_(self, node: Any) -> Any:
        if self.plan is not None and node.name_hint == "SIMT_VF":
            self.function = self.plan.functions[self.position]
            self.position += 1
            result = rebuild_block(node, body=self.visit(node.body))
            self.function = None
            return result
        return super().visit_sblock_(node)

    # -- copies ----------------------------------------------------------------------------------------------

    def visit_evaluate_(self, node: Any) -> Any:
        if op_name(node.value) == "tl.tileop.ascend_copy" and self.plan is not None and self.function is None:
            return self._copy(node, Region.of(node.value.args[0]), Region.of(node.value.args[1]))
        result = super().visit_evaluate_(node)
        effects = isinstance(node.value, tirx.Call) and self.function is not None and self.function.writes_global
        return self._once(result) if effects else result

    def _copy(self, node: Any, source: Region, target: Region) -> Any:
        if source.buffer.scope() == "shared.l0c":
            here = Region.whole(self.visit_buffer(target.buffer), 2)
            return ascend_copy(source, here, dual_dst_ctl=int32(1), l2_cache_ctrl=int32(0))
        if _in_ub(target.buffer):
            if not self._is_split(target.buffer):
                return node
            return ascend_copy(self._half(source, target), self._own(target))
        if _in_ub(source.buffer):
            if self._is_split(source.buffer):
                return ascend_copy(self._own(source), self._half(target, source))
            # Both cores hold all of it: each writes its half.
            axis = source.wide_dims()[0]
            rows = int(source.extents[axis])
            other = _row_axis(target, rows)
            if other is None:
                raise _NotSplittable(f"the copy of {source.buffer.name} reorders dimensions")
            return ascend_copy(self._part(source, axis, rows), self._part(target, other, rows))
        return node

    def _own(self, region: Region) -> Region:
        extents = [int32(int(region.extents[0]) // CORES), *region.extents[1:]]
        return Region(self.visit_buffer(region.buffer), region.mins, extents, region.access)

    def _half(self, region: Region, split: Region) -> Region:
        rows = int(split.buffer.shape[0])
        axis = _row_axis(region, rows)
        assert axis is not None
        return self._part(region, axis, rows)

    def _part(self, region: Region, axis: int, rows: int) -> Region:
        mins, extents = list(region.mins), list(region.extents)
        mins[axis] = mins[axis] + self.sid * (rows // CORES)
        extents[axis] = int32(rows // CORES)
        return Region(region.buffer, mins, extents, region.access)

    def finish_root(self, node: Any, body: Any) -> Any:
        annotations = dict(node.annotations)
        annotations["vector_count"] = int32(self.cores)
        return rebuild_block(
            node, body=body, alloc_buffers=[self.visit_buffer(b) for b in node.alloc_buffers], annotations=annotations
        )


def split_rows(function: Any, vector_cores: int = CORES) -> Any:
    """Halve the rows (dimension 0) of a mixed kernel's UB tiles and vector functions over two vector cores.

    A vector function is halved if everything it writes is written at its own row, ``tile[i, ...]`` with ``i`` the
    outermost parallel index; a tile is halved if every access is of that form. Other tiles (a scale vector read by
    column) are kept whole, and computed, on both cores. The cube's sums reach both cores by one dual copy.

    Where an accumulator itself cannot be halved, or with ``vector_cores=1``, the second vector core stays idle.
    Kernels without a gemm are left alone: each of their blocks is one vector core.
    """
    uses_cube: list[Any] = []
    walk(function.body, lambda n: uses_cube.append(n) if op_name(n) == "tl.tileop.gemm" else None)
    if not uses_cube:
        return function
    plan: _Plan | None = None
    if vector_cores == CORES:
        try:
            plan = _Plan(function)
        except _NotSplittable:
            plan = None
    return function.with_body(_SplitRows(plan).visit(function.body))
