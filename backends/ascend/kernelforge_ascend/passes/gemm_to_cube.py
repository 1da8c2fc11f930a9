"""Gemms move to the cube unit: operands in L1, sums in L0C, results copied to UB."""

from __future__ import annotations

from typing import Any

from tilelang.layout import make_ascend_l0c_layout
from tvm import tirx

from .gemm_uses import Gemm, touches, uses_of
from .rewriter import (
    BufferMap,
    LoweringError,
    Region,
    RootRewriter,
    ascend_copy,
    int32,
    is_const,
    is_vector,
    op_name,
    rebuild_block,
    rebuild_for,
    sequence,
    span_of,
    static,
    walk,
)

WORKSPACE = "workspace_"
"""Prefix of the kernel parameters this pass adds: global scratch the launcher allocates."""

SLOTS = 65535
"""Slices declared for a workspace, one per block: the most blocks a launch can have. Launchers allocate fewer."""

FRACTAL = 16
"""Rows of a cube fractal; gemm extents M and N are multiples of it."""


class _GemmToCube(RootRewriter):
    def __init__(self, function: Any) -> None:
        self.uses = uses_of(function)
        self.gemm_operands = BufferMap()  # buffer -> transposed
        self.l1 = BufferMap()
        self.l0c = BufferMap()
        self.temporaries = BufferMap()  # accumulator -> UB tile of one dot
        self.workspaces = BufferMap()
        self.staged = BufferMap()  # operands whose L1 tile is up to date
        self.resident = BufferMap()  # accumulators kept in L0C through the loop being visited -> clear expression
        self.allocated: list[Any] = []
        self.block: Any = None
        walk(function.body, self._collect)

    def _collect(self, node: Any) -> None:
        if op_name(node) != "tl.tileop.gemm":
            return
        gemm = Gemm.of(node)
        for region, transposed in ((gemm.a, gemm.transpose_a), (gemm.b, not gemm.transpose_b)):
            if self.gemm_operands.get(region.buffer, transposed) != transposed:
                raise LoweringError(
                    f"gemm operand {region.buffer.name} is used both as it is and transposed; "
                    "use one tile for each orientation"
                )
            self.gemm_operands[region.buffer] = transposed

    # -- buffers ---------------------------------------------------------------------------------------------

    def _direct(self, buffer: Any) -> bool:
        """True for an operand that only copies from global memory fill, so that it can go straight to L1."""
        use = self.uses.get(buffer)
        return buffer in self.gemm_operands and use.loaded and not use.computed and not use.partial

    def _allocate(self, shape: Any, dtype: str, name: str, scope: str) -> Any:
        buffer = tirx.decl_buffer(list(shape), dtype, name, scope=scope)
        self.allocated.append(buffer)
        return buffer

    def _l1_of(self, buffer: Any, shape: list[Any]) -> Any:
        return self.l1.setdefault(buffer, lambda: self._allocate(shape, buffer.dtype, f"{buffer.name}_l1", "shared.l1"))

    def _workspace_of(self, buffer: Any, rows: int, columns: int) -> Any:
        name = f"{WORKSPACE}{buffer.name}_{len(self.workspaces.items())}"
        return self.workspaces.setdefault(
            buffer, lambda: tirx.decl_buffer([int32(SLOTS * rows), int32(columns)], buffer.dtype, name)
        )

    # -- statements ------------------------------------------------------------------------------------------

    def visit_for_(self, node: Any) -> Any:
        if node.kind == tirx.ForKind.PARALLEL:
            return node  # no gemm in it; what it overwrites is forgotten by the sequence around it
        if node.thread_binding is not None and node.thread_binding.thread_tag == "blockIdx.x":
            self.block = node.loop_var
        self.staged = BufferMap()
        body = self.visit(node.body)
        self.staged = BufferMap()
        return rebuild_for(node, node.min, node.extent, body)

    def visit_if_then_else_(self, node: Any) -> Any:
        self.staged = BufferMap()
        result = super().visit_if_then_else_(node)
        self.staged = BufferMap()
        return result

    def visit_seq_stmt_(self, node: Any) -> Any:
        statements: list[Any] = []
        for position, statement in enumerate(node.seq):
            kept = self._accumulators_kept(statement, list(node.seq[:position]))
            outer = self.resident
            self.resident = BufferMap(outer.items() + kept.items())
            statements.append(self.visit(statement))
            self.resident = outer
            statements.extend(self._l0c_to_ub(buffer) for buffer, _ in kept.items())
            self._forget_overwritten(statement)
        return sequence(statements)

    def _forget_overwritten(self, statement: Any) -> None:
        def visit(node: Any) -> None:
            written = None
            if isinstance(node, tirx.BufferStore):
                written = node.buffer
            elif op_name(node) == "tl.region" and int(node.args[1]) & 2:
                written = node.args[0].buffer
            if written is not None and written in self.staged:
                self.staged[written] = False

        walk(statement, visit)

    def _accumulators_kept(self, statement: Any, before: list[Any]) -> BufferMap:
        """Accumulators a loop only adds gemms to: they can stay in L0C until the loop ends."""
        kept = BufferMap()
        if not isinstance(statement, tirx.For) or statement.kind == tirx.ForKind.PARALLEL:
            return kept
        body = list(statement.body.seq) if isinstance(statement.body, tirx.SeqStmt) else [statement.body]
        first = tirx.EQ(statement.loop_var, statement.min)
        for candidate in body:
            if not isinstance(candidate, tirx.Evaluate) or op_name(candidate.value) != "tl.tileop.gemm":
                continue
            gemm = Gemm.of(candidate.value)
            target = gemm.c.buffer
            others = [s for s in body if s is not candidate and touches(s, target)]
            if others or not gemm.c.covers_buffer() or not _positive(statement.extent):
                continue
            if _same(gemm.clear, first) or (is_const(gemm.clear, 0) and _cleared(before, target)):
                kept[target] = first
        return kept

    def visit_evaluate_(self, node: Any) -> Any:
        name = op_name(node.value)
        if name == "tl.tileop.gemm":
            return self._gemm(Gemm.of(node.value))
        if name == "tl.tileop.copy":
            return self._copy(node)
        return node

    def _copy(self, node: Any) -> Any:
        source, target = Region.of(node.value.args[0]), Region.of(node.value.args[1])
        if not self._direct(target.buffer):
            return node
        transposed = self.gemm_operands.get(target.buffer)
        shape = list(target.buffer.shape)
        turned = Region(target.buffer, target.mins, target.extents, 2)
        if transposed:
            if len(shape) != 2:
                raise LoweringError(f"transposed gemm operand {target.buffer.name} has {len(shape)} dimensions, not 2")
            shape = shape[::-1]
            turned = Region(target.buffer, target.mins[::-1], target.extents[::-1], 2)
        tile = self._l1_of(target.buffer, shape)
        load = ascend_copy(source, turned.at(tile), **({"transpose": int32(1)} if transposed else {}))
        return sequence([load, node]) if self.uses.get(target.buffer).read else load

    def _gemm(self, gemm: Gemm) -> Any:
        types = str(gemm.a.buffer.dtype), str(gemm.c.buffer.dtype)
        if types not in (("int8", "int32"), ("bfloat16", "float32")):
            raise LoweringError(
                f"gemm of {types[0]} into {types[1]}: int8 into int32 (exact mode) and bfloat16 into float32 (native "
                "mode) are wanted"
            )
        a, stage_a = self._operand(gemm.a, gemm.transpose_a)
        b, stage_b = self._operand(gemm.b, not gemm.transpose_b)
        rows, columns = (static(e, "a gemm extent") for e in gemm.c.extents[-2:])
        if rows % FRACTAL or columns % FRACTAL:
            raise LoweringError(
                f"gemm of {rows} x {columns}: the cube unit needs multiples of {FRACTAL} (block_M, block_N)"
            )
        if not gemm.c.covers_buffer():
            raise LoweringError(f"gemm into a part of {gemm.c.buffer.name}; give each gemm its own accumulator tile")
        target = gemm.c.buffer
        sums = self.l0c.setdefault(
            target, lambda: self._allocate(target.shape, target.dtype, f"{target.name}_l0c", "shared.l0c")
        )
        clear = self.resident.get(target)
        arguments = [a.call(), b.call(), Region.whole(sums, 2).call(), tirx.IntImm("bool", 0), tirx.IntImm("bool", 1)]
        arguments += list(gemm.call.args[5:9])
        arguments += [tirx.IntImm("bool", 1) if clear is None else clear, *gemm.call.args[10:]]
        call = tirx.Evaluate(tirx.Call(gemm.call.dtype, gemm.call.op, arguments), span_of(gemm.call))
        if clear is not None:
            return sequence([*stage_a, *stage_b, call])
        if is_const(gemm.clear, 1):
            return sequence([*stage_a, *stage_b, call, self._l0c_to_ub(target)])
        return sequence([*stage_a, *stage_b, call, *self._add(gemm, sums)])

    def _add(self, gemm: Gemm, sums: Any) -> list[Any]:
        """C = (clear ? 0 : C) + dot, where the accumulator is used in ways that keep it out of L0C."""
        target = gemm.c.buffer
        name = f"{target.name}_dot"
        dot = self.temporaries.setdefault(
            target, lambda: self._allocate(target.shape, target.dtype, name, "shared.dyn")
        )
        rows, columns = (tirx.Var(v, "int32") for v in ("i", "j"))
        here = [rows, columns]
        old = tirx.BufferLoad(target, here)
        kept = old if is_const(gemm.clear, 0) else tirx.Select(gemm.clear, tirx.IntImm("int32", 0), old)
        body: Any = tirx.BufferStore(target, kept + tirx.BufferLoad(dot, here), here)
        for variable, extent in reversed(list(zip(here, target.shape, strict=True))):
            body = tirx.For(variable, int32(0), extent, tirx.ForKind.PARALLEL, body)
        return [ascend_copy(Region.whole(sums, 1), Region.whole(dot, 2)), body]

    def _l0c_to_ub(self, target: Any) -> Any:
        return ascend_copy(Region.whole(self.l0c.get(target), 1), Region.whole(target, 2))

    def _operand(self, region: Region, transposed: bool) -> tuple[Region, list[Any]]:
        """The operand's L1 region and the statements that bring it there."""
        buffer = region.buffer
        if self._direct(buffer):
            tile = self.l1.get(buffer)
            if tile is None:
                raise LoweringError(f"gemm reads {buffer.name} before any copy fills it")
            if transposed:
                return Region.whole(tile, 1), []
            return region.at(tile), []
        if not is_vector(buffer):
            raise LoweringError(f"gemm operand {buffer.name} lives in {buffer.scope()}; copy it to shared memory first")
        rows, columns = (static(e, f"the extent of gemm operand {buffer.name}") for e in region.extents[-2:])
        shape = [columns, rows] if transposed else [rows, columns]
        tile = self._l1_of(buffer, [int32(e) for e in shape])
        if [int(e) for e in tile.shape] != shape:
            raise LoweringError(f"gemms take differently shaped parts of {buffer.name}; use one tile for each shape")
        scratch = self._workspace_of(buffer, rows, columns)
        there = Region(scratch, [self.block * rows, int32(0)], [int32(rows), int32(columns)], 2)
        if self.staged.get(buffer) and region.covers_buffer():
            return Region.whole(tile, 1), []
        self.staged[buffer] = region.covers_buffer()
        stage = [
            ascend_copy(region, there),
            ascend_copy(there, Region.whole(tile, 2), **({"transpose": int32(1)} if transposed else {})),
        ]
        return Region.whole(tile, 1), stage

    def finish_root(self, node: Any, body: Any) -> Any:
        gone = [b for b in node.alloc_buffers if self._direct(b) and not self.uses.get(b).read]
        kept = [b for b in node.alloc_buffers if not any(b.same_as(g) for g in gone)]
        annotations = dict(node.annotations)
        layouts = dict(annotations.get("layout_map", {}))
        layouts.update({sums.data: make_ascend_l0c_layout(sums) for sums in self.l0c.values()})
        if layouts:
            annotations["layout_map"] = layouts
        return rebuild_block(node, body=body, alloc_buffers=kept + self.allocated, annotations=annotations)


def _positive(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) > 0


def _same(a: Any, b: Any) -> bool:
    from tilelang import tvm

    return bool(tvm.ir.structural_equal(a, b))


def _cleared(before: list[Any], buffer: Any) -> bool:
    """True if the last statement that touches the buffer fills all of it with zero."""
    for statement in reversed(before):
        if touches(statement, buffer):
            call: Any = getattr(statement, "value", None)
            if op_name(call) != "tl.tileop.fill" or not is_const(call.args[1], 0):
                return False
            return Region.of(call.args[0]).covers_buffer()
    return False


def gemm_to_cube(function: Any) -> Any:
    """Lower every ``T.gemm`` (int8 into int32) of a PrimFunc with a one-dimensional grid onto the cube unit.

    * Operands that copies from global memory fill go straight to L1, transposed on the way where the gemm asks for
      it (L1 gemms are A row-major, B transposed only).
    * Operands that vector code produces, or of which a gemm takes some columns, go from UB through a global
      workspace to L1: a vector core cannot write int8 fractals. Each workspace becomes a kernel parameter named
      ``workspace_*`` with one slice per block.
    * Sums are formed in L0C and copied to the accumulator's UB tile. An accumulator that a loop only adds to stays
      in L0C for the whole loop; any other accumulating gemm adds its dot in a vector region.

    Raises:
        LoweringError: for gemm shapes or operands the cube unit cannot take.
    """
    pass_ = _GemmToCube(function)
    body = pass_.visit(function.body)
    parameters, buffers = list(function.params), dict(function.buffer_map.items())
    for workspace in pass_.workspaces.values():
        handle = tirx.Var(f"{workspace.name}_handle", "handle")
        parameters.append(handle)
        buffers[handle] = workspace
    return tirx.PrimFunc(parameters, body, function.ret_type, buffers, attrs=function.attrs)
