"""Tensors that elementwise code reads or writes by itself are staged in UB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tilelang import tvm
from tvm import tirx
from tvm.ir import Range

from kernelforge.lowering.tir import conjuncts

from .boxes import Box, Loop, bound_of, box_of
from .persistent_grid import TILES_BYTES, tile_bytes
from .rewriter import (
    THREAD_LOCAL,
    BufferMap,
    RootRewriter,
    ascend_copy,
    int32,
    is_const,
    is_global,
    is_vector,
    op_name,
    rebuild_block,
    rebuild_for,
    sequence,
    span_of,
    walk,
)
from .split_rows import CORES, split_rows
from .vector_regions import vector_regions

TASK = "tl.ascend_task"
"""TileLang's mark of statements of one pipe that its scheduler places together."""

EVENTS = 6
"""Most places of a kernel that wait for loads, or whose stores are waited for. A pair of pipes has 8 flags; TileLang
gives each place its own, two where it keeps two versions of a tile, and beyond 8 it resorts to buffer locks."""


class _Tensors:
    """Which buffers a kernel reads and which it writes."""

    def __init__(self, function: Any) -> None:
        self.loads, self.positions, self.written = BufferMap(), BufferMap(), BufferMap()
        walk(function.body, self._visit)

    def _visit(self, node: Any) -> None:
        name = op_name(node)
        if isinstance(node, tirx.BufferStore):
            self.written[node.buffer] = True
        elif isinstance(node, tirx.BufferLoad):
            self.loads[node.buffer] = self.loads.get(node.buffer, 0) + 1
        elif name == "tl.region":
            buffer, access = node.args[0].buffer, int(node.args[1])
            if access & 2:
                self.written[buffer] = True
            if not access & 1:  # its load is a position
                self.positions[buffer] = self.positions.get(buffer, 0) + 1
        elif name == "tl.access_ptr":
            self.written[node.args[0].buffer] = True

    def reads(self, buffer: Any) -> bool:
        return int(self.loads.get(buffer, 0)) > int(self.positions.get(buffer, 0))

    def writes(self, buffer: Any) -> bool:
        return buffer in self.written


class _Room:
    """What is left for staged tiles: bytes of UB, and places that load or store."""

    def __init__(self, function: Any, nbytes: int) -> None:
        self.loads = self.stores = EVENTS
        walk(function.body, self._count)
        self.left = nbytes - tile_bytes(function)
        self.tiles: list[Any] = []

    def _count(self, node: Any) -> None:
        if op_name(node) in ("tl.tileop.copy", "tl.tileop.ascend_copy"):
            source, target = (argument.args[0].buffer for argument in node.args[:2])
            self.loads -= is_global(source) and is_vector(target)
            self.stores -= is_global(target) and is_vector(source)

    def take(self, box: Box) -> Any:
        """A tile for the box, None if it does not fit."""
        if box.nbytes > self.left:
            return None
        self.left -= box.nbytes
        name = f"{box.buffer.name}_tile{len(self.tiles)}"
        tile = tirx.decl_buffer(box.shape, box.buffer.dtype, name, scope="shared.dyn")
        self.tiles.append(tile)
        return tile


class _Nest(RootRewriter):
    """Rewrites one T.Parallel nest; ``scalars`` are read before it, ``before`` and ``after`` are copies around it."""

    def __init__(self, tensors: _Tensors, room: _Room, analyzer: Any, nest: Any) -> None:
        self.tensors, self.room, self.analyzer = tensors, room, analyzer
        self.loops: list[Loop] = []
        self.parallel: list[Any] = []
        self.guards: list[Any] = []
        self.hidden: list[Any] = []  # variables of loops that ended or whose length is unknown, of bindings of data
        self.known: dict[Any, Any] = {}  # values of the nest's bindings
        self.values = BufferMap()  # values of scalars that the nest assigns once
        self.stores = BufferMap()  # how often the nest assigns a thread's own buffer
        self.loaded: list[tuple[Any, list[Any], Any, list[Any]]] = []
        self.scalars: list[Any] = []
        self.before: list[Any] = []
        self.after: list[Any] = []
        walk(nest, self._count)

    def _count(self, node: Any) -> None:
        if isinstance(node, tirx.BufferStore) and node.buffer.scope() in THREAD_LOCAL:
            self.stores[node.buffer] = self.stores.get(node.buffer, 0) + 1

    # -- the nest's own control flow -------------------------------------------------------------------------

    def visit_for_(self, node: Any) -> Any:
        constant = isinstance(node.min, tirx.IntImm) and isinstance(node.extent, tirx.IntImm)
        minimum, extent = self.visit(node.min), self.visit(node.extent)
        if not constant:
            self.hidden.append(node.loop_var)
            with self._under(tirx.IntImm("bool", 1), opaque=True):
                return rebuild_for(node, minimum, extent, self.visit(node.body))
        loop = (node.loop_var, int(node.min), int(node.extent))
        self.loops.append(loop)
        if node.kind == tirx.ForKind.PARALLEL:
            self.parallel.append(node.loop_var)
        self.analyzer.bind(node.loop_var, Range.from_min_extent(node.min, node.extent))
        body = self.visit(node.body)
        self.loops.pop()
        self.hidden.append(node.loop_var)
        return rebuild_for(node, minimum, extent, body)

    @contextmanager
    def _under(self, *conditions: Any, opaque: bool = False) -> Iterator[None]:
        """Conditions that hold inside; an opaque one is not known."""
        parts = [None] if opaque else [part for c in conditions for part in conjuncts(c)]
        self.guards.extend(parts)
        yield
        del self.guards[len(self.guards) - len(parts) :]

    def visit_if_then_else_(self, node: Any) -> Any:
        condition = self.visit(node.condition)
        with self._under(node.condition):
            then = self.visit(node.then_case)
        otherwise = None
        if node.else_case is not None:
            with self._under(opaque=True):
                otherwise = self.visit(node.else_case)
        return tirx.IfThenElse(condition, then, otherwise, span_of(node))

    def visit_select_(self, node: Any) -> Any:
        return tirx.Select(*self._branches(node.condition, node.true_value, node.false_value), span_of(node))

    def visit_call_(self, node: Any) -> Any:
        if op_name(node) == "tl.access_ptr":
            return node
        if op_name(node) != "tirx.if_then_else":
            return super().visit_call_(node)
        return tirx.Call(node.dtype, node.op, self._branches(*node.args), span=span_of(node))

    def _branches(self, condition: Any, then: Any, otherwise: Any) -> list[Any]:
        visited = [self.visit(condition)]
        with self._under(condition):
            visited.append(self.visit(then))
        with self._under(opaque=True):
            visited.append(self.visit(otherwise))
        return visited

    def visit_bind_(self, node: Any) -> Any:
        value = self.visit(node.value)
        if self._index(value) is None:
            self.hidden.append(node.var)
        else:
            self.known[node.var] = value
        return tirx.Bind(node.var, value, span_of(node))

    # -- accesses --------------------------------------------------------------------------------------------

    def _index(self, expression: Any) -> Any:
        """The expression in terms of loops and of what the nest does not change; None if data decides it."""
        if str(expression.dtype) not in ("int32", "int64"):
            return None
        scalars: list[Any] = []
        walk(expression, lambda n: scalars.append(n) if isinstance(n, tirx.BufferLoad) else None)
        for load in scalars:
            if load.buffer.scope() not in THREAD_LOCAL:
                return None
            if load.buffer in self.stores and load.buffer not in self.values:
                return None
        expression = _Scalars(self.values).visit(tirx.stmt_functor.substitute(expression, self.known))
        unknown: list[Any] = []

        def visit(node: Any) -> None:
            if isinstance(node, tirx.Var) and node in self.hidden:
                unknown.append(node)

        walk(expression, visit)
        return None if unknown else expression

    def _box(self, buffer: Any, indices: list[Any]) -> Box | None:
        plain = [self._index(index) for index in indices]
        if any(index is None for index in plain):
            return None
        return box_of(buffer, plain, self.loops, self.analyzer)

    def visit_buffer_load_(self, node: Any) -> Any:
        indices = self.visit_all(node.indices)
        load = tirx.BufferLoad(node.buffer, indices, span=span_of(node))
        if not is_global(node.buffer) or self.tensors.writes(node.buffer):
            return load
        for buffer, where, tile, at in self.loaded:
            if buffer.same_as(node.buffer) and all(map(tvm.ir.structural_equal, where, indices)):
                return tirx.BufferLoad(tile, at, span=span_of(node)) if at else tile
        staged = self._load(load)
        return load if staged is None else staged

    def _load(self, load: Any) -> Any:
        box = self._box(load.buffer, list(load.indices))
        if box is None:
            return None
        if not box.axes and not self.guards and load.dtype == "int32":
            # One integer, such as a bound or a row number: the core's control program reads it, and may use it in an
            # address.
            scalar = tirx.Var(f"{load.buffer.name}_value", "int32")
            self.scalars.append(tirx.Bind(scalar, load))
            self.loaded.append((load.buffer, list(load.indices), scalar, []))
            return scalar
        nonnegative = [self._nonnegative(m) for m in box.mins]
        if not all(nonnegative) and not self._starts_inside():
            return None
        tile = self.room.take(box) if self.before or self.room.loads > 0 else None
        if tile is None:
            return None
        self.room.loads -= not self.before
        box.mins = [m if sure else tirx.max(m, 0) for m, sure in zip(box.mins, nonnegative, strict=True)]
        for here, there in box.copies(tile, load.buffer):
            self.before.append(ascend_copy(there, here))
        self.loaded.append((load.buffer, list(load.indices), tile, box.at))
        return tirx.BufferLoad(tile, box.at, span=span_of(load))

    def _nonnegative(self, minimum: Any) -> bool:
        return bool(self.analyzer.can_prove(minimum >= 0))

    def _starts_inside(self) -> bool:
        """Whether the first iteration makes the access if any does: conditions are upper bounds of loop variables."""
        for guard in self.guards:
            bound = None if guard is None else self._bound(guard)
            if bound is None or any(c < 0 for c in bound[0].values()):
                return False
        return True

    def _bound(self, guard: Any) -> tuple[dict[Any, int], Any] | None:
        if not isinstance(guard, (tirx.LT, tirx.LE, tirx.GT, tirx.GE)):
            return None
        sides = [self._index(side) for side in (guard.a, guard.b)]
        if any(side is None for side in sides):
            return None
        return bound_of(type(guard)(*sides), self.loops)

    def visit_buffer_store_(self, node: Any) -> Any:
        value, indices = self.visit(node.value), self.visit_all(node.indices)
        if node.buffer.scope() in THREAD_LOCAL and self.stores.get(node.buffer) == 1 and node.buffer.scope() != "local":
            index = self._index(value)
            if index is not None:
                self.values[node.buffer] = index
        if is_global(node.buffer) and not self.tensors.reads(node.buffer):
            staged = self._store(node.buffer, indices)
            if staged is not None:
                return tirx.BufferStore(staged[0], value, staged[1], span=span_of(node))
        return tirx.BufferStore(node.buffer, value, indices, span=span_of(node))

    def _store(self, buffer: Any, indices: list[Any]) -> tuple[Any, list[Any]] | None:
        box = self._box(buffer, indices)
        if box is None or not box.exact:
            return None
        bounds = self._bounds(box)
        if bounds is None:
            return None
        mins = [m if self._nonnegative(m) else tirx.max(m, 0) for m in box.mins]
        ends = [_least(buffer.shape[d], [box.mins[d] + n for n in ns]) for d, ns in enumerate(bounds)]
        tile = self.room.take(box) if self.after or self.room.stores > 0 else None
        if tile is None:
            return None
        self.room.stores -= not self.after
        there = buffer
        if any(bounds):
            # The same memory, as if it ended where the nest stops: the copy leaves out what lies beyond.
            strides = list(buffer.strides) or _strides(buffer.shape)
            there = tirx.decl_buffer(ends, buffer.dtype, buffer.name, data=buffer.data, strides=strides)
        box.mins = mins
        for source, target in box.copies(tile, there):
            self.after.append(ascend_copy(source, target))
        return tile, box.at

    def _bounds(self, box: Box) -> list[list[Any]] | None:
        """By dimension, how many elements of the box the conditions let through; None if they are no such bounds."""
        followed = {loop[0] for loop in box.outer}.union(*(c for c in box.coefficients))
        if any(v not in followed for v, _, count in self.loops if v in self.parallel and count > 1):
            return None
        bounds: list[list[Any]] = [[] for _ in box.mins]
        for guard in self.guards:
            bound = None if guard is None else self._bound(guard)
            if bound is None:
                return None
            coefficients, limit = bound
            if not coefficients:
                # Nothing the nest changes: all of the box or nothing.
                bounds[0].append(tirx.Select(limit > 0, box.extents[0], int32(0)))
                continue
            fits = [d for d, c in enumerate(box.coefficients) if c == coefficients]
            if not fits:
                return None
            bounds[fits[0]].append(limit)
        return bounds


class _Scalars(RootRewriter):
    """Puts the values of scalars in place of their loads."""

    def __init__(self, values: BufferMap) -> None:
        self.values = values

    def visit_buffer_load_(self, node: Any) -> Any:
        return self.values.get(node.buffer, node)


def _least(first: Any, others: list[Any]) -> Any:
    for other in others:
        first = tirx.min(first, other)
    return first


def _strides(shape: Any) -> list[Any]:
    strides: list[Any] = [int32(1)]
    for extent in reversed(list(shape)[1:]):
        strides.insert(0, strides[0] * extent)
    return strides


def _task(copies: list[Any]) -> list[Any]:
    """The copies as one task of TileLang's scheduler, which would otherwise order each of them against every other."""
    if len(copies) < 2:
        return copies
    return [tirx.AttrStmt({}, TASK, int32(1), sequence(copies))]


class _Stage(RootRewriter):
    def __init__(self, function: Any, nbytes: int) -> None:
        self.tensors, self.room = _Tensors(function), _Room(function, nbytes)
        self.analyzer = tvm.arith.Analyzer()

    def visit_for_(self, node: Any) -> Any:
        if node.kind == tirx.ForKind.PARALLEL:
            nest = _Nest(self.tensors, self.room, self.analyzer, node)
            rewritten = nest.visit(node)
            return sequence([*nest.scalars, *_task(nest.before), rewritten, *_task(nest.after)])
        if not is_const(node.extent, 0):
            self.analyzer.bind(node.loop_var, Range.from_min_extent(node.min, node.extent))
        return super().visit_for_(node)

    def finish_root(self, node: Any, body: Any) -> Any:
        return rebuild_block(node, body=body, alloc_buffers=[*node.alloc_buffers, *self.room.tiles])


def stage_operands(function: Any) -> Any:
    """Copy what T.Parallel nests read from and write to tensors by themselves, box by box, to and from tiles in UB.

    An operand is staged if its elements form a box (:func:`~.boxes.box_of`) at a place that no data of the nest
    decides, if the kernel does not both read and write the tensor, and if the tiles of the kernel, those it has and
    those staged before, still fit ``TILES_BYTES``. What is written must fill the box, up to bounds that cut its end.
    One integer that the nest reads unconditionally is read by the core's control program instead.
    Everything else stays an access of the vector function's threads to global memory.

    Tiles count as they are on one vector core: first all as if :func:`split_rows` halved them, and if it then does not
    halve enough of them, all at their full size.
    """
    for cores in (CORES, 1):
        staged = function.with_body(_Stage(function, cores * TILES_BYTES).visit(function.body))
        if cores == 1 or tile_bytes(split_rows(vector_regions(staged))) <= TILES_BYTES:
            break
    return staged
