"""A TIR rewriter in plain Python, and the vocabulary the passes share.

One method per node kind; a pass overrides the kinds it cares about. Untouched nodes are returned as they are, so
spans (the kernel's source lines) survive.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tilelang import tvm
from tvm import tirx

ON_CHIP_VECTOR = ("shared", "shared.dyn", "local.fragment")
"""Scopes of the portable subset that become Unified Buffer (UB) memory."""

THREAD_LOCAL = ("local", "local.var")
"""Scopes private to one SIMT thread, or scalars of a core's control program."""


class LoweringError(ValueError):
    """A kernel that the Ascend passes cannot lower; the message says what and what to do."""


def span_of(node: Any) -> Any:
    """The kernel's source position of a node, if it carries one."""
    return getattr(node, "span", None)


def op(name: str) -> Any:
    return tvm.ir.Op.get(name)


def op_name(node: Any) -> str:
    """Name of the operator a call applies, "" for anything else."""
    return node.op.name if isinstance(node, tirx.Call) and hasattr(node.op, "name") else ""


def on_functions(change: Callable[[Any], Any], module: Any) -> Any:
    """A module with each of its functions changed."""
    functions = {name: change(f) if isinstance(f, tirx.PrimFunc) else f for name, f in module.functions_items()}
    return tvm.IRModule(functions, attrs=module.attrs)


def int32(value: int) -> Any:
    return tirx.IntImm("int32", int(value))


def static(expr: Any, what: str) -> int:
    """The value of a constant extent, or a LoweringError that names it."""
    if isinstance(expr, int):
        return expr
    if isinstance(expr, tirx.IntImm):
        return int(expr.value)
    raise LoweringError(f"{what} is {expr}; the Ascend passes need a constant there")


def is_global(buffer: Any) -> bool:
    return buffer.scope() in ("global", "")


def is_vector(buffer: Any) -> bool:
    return buffer.scope() in ON_CHIP_VECTOR


class Region:
    """A ``tl.region``: a box of a buffer, as tile operators take it."""

    def __init__(self, buffer: Any, mins: Sequence[Any], extents: Sequence[Any], access: int) -> None:
        self.buffer, self.mins, self.extents, self.access = buffer, list(mins), list(extents), access

    @staticmethod
    def of(call: Any) -> Region:
        load = call.args[0]
        return Region(load.buffer, load.indices, call.args[2:], int(call.args[1]))

    @staticmethod
    def whole(buffer: Any, access: int) -> Region:
        return Region(buffer, [int32(0)] * len(buffer.shape), buffer.shape, access)

    def call(self) -> Any:
        load = tirx.BufferLoad(self.buffer, self.mins)
        return tirx.Call("handle", op("tl.region"), [load, int32(self.access), *map(as_expr, self.extents)])

    def at(self, buffer: Any) -> Region:
        """The same box of another buffer."""
        return Region(buffer, self.mins, self.extents, self.access)

    def covers_buffer(self) -> bool:
        return all(is_const(m, 0) for m in self.mins) and all(
            tvm.ir.structural_equal(e, s) for e, s in zip(self.extents, self.buffer.shape, strict=True)
        )

    def wide_dims(self) -> list[int]:
        """Dimensions longer than one element."""
        return [d for d, extent in enumerate(self.extents) if not is_const(extent, 1)]


def as_expr(value: Any) -> Any:
    return int32(value) if isinstance(value, int) else value


def is_const(expr: Any, value: int) -> bool:
    return isinstance(expr, (int, tirx.IntImm)) and int(expr) == value


def ascend_copy(source: Region, target: Region, **annotations: Any) -> Any:
    """A DMA between memory spaces, in TileLang's Ascend dialect."""
    arguments = [Region(source.buffer, source.mins, source.extents, 1).call()]
    arguments.append(Region(target.buffer, target.mins, target.extents, 2).call())
    return tirx.Evaluate(tirx.Call("handle", op("tl.tileop.ascend_copy"), arguments, annotations=annotations or None))


def sequence(statements: Iterable[Any]) -> Any:
    """The statements one after another, flattened."""
    flat: list[Any] = []
    for statement in statements:
        if isinstance(statement, tirx.SeqStmt):
            flat.extend(statement.seq)
        else:
            flat.append(statement)
    return flat[0] if len(flat) == 1 else tirx.SeqStmt(flat)


@functools.cache
def _method(kind: str) -> str:
    """``BufferLoad`` -> ``visit_buffer_load_``."""
    return "visit_" + re.sub(r"(?<=[a-z])([A-Z])", r"_\1", kind).lower() + "_"


class Rewriter:
    """Rebuilds a statement tree bottom-up; override ``visit_<node_kind>_`` to change what a kind becomes."""

    def visit(self, node: Any) -> Any:
        return getattr(self, _method(type(node).__name__), self.visit_other)(node)

    def visit_all(self, nodes: Iterable[Any]) -> list[Any]:
        return [self.visit(node) for node in nodes]

    def visit_other(self, node: Any) -> Any:
        if isinstance(node, (tirx.Var, tirx.IntImm, tirx.FloatImm, tirx.StringImm)):
            return node
        if hasattr(node, "a") and hasattr(node, "b"):
            return self.visit_binary(node)
        raise LoweringError(f"the Ascend passes do not know the node {type(node).__name__}: {node}")

    def visit_binary(self, node: Any) -> Any:
        a, b = self.visit(node.a), self.visit(node.b)
        if a.same_as(node.a) and b.same_as(node.b):
            return node
        result = type(node)(a, b, span_of(node))
        constants = isinstance(a, tirx.IntImm) and isinstance(b, tirx.IntImm)
        return tvm.arith.Analyzer().simplify(result) if constants else result

    def visit_cast_(self, node: Any) -> Any:
        return tirx.Cast(node.dtype, self.visit(node.value), span_of(node))

    def visit_not_(self, node: Any) -> Any:
        return tirx.Not(self.visit(node.a), span_of(node))

    def visit_select_(self, node: Any) -> Any:
        return tirx.Select(
            self.visit(node.condition), self.visit(node.true_value), self.visit(node.false_value), span_of(node)
        )

    def visit_call_(self, node: Any) -> Any:
        if op_name(node) == "tl.region":
            return self.visit_region(Region.of(node)).call()
        arguments = [a if isinstance(a, tirx.StringImm) else self.visit(a) for a in node.args]
        return tirx.Call(node.dtype, node.op, arguments, annotations=node.annotations or None, span=span_of(node))

    def visit_region(self, region: Region) -> Region:
        return Region(
            self.visit_buffer(region.buffer),
            self.visit_all(region.mins),
            [self.visit(as_expr(e)) for e in region.extents],
            region.access,
        )

    def visit_buffer(self, buffer: Any) -> Any:
        """What an accessed buffer becomes."""
        return buffer

    def visit_buffer_load_(self, node: Any) -> Any:
        return tirx.BufferLoad(self.visit_buffer(node.buffer), self.visit_all(node.indices), span=span_of(node))

    def visit_buffer_store_(self, node: Any) -> Any:
        indices = self.visit_all(node.indices)
        return tirx.BufferStore(self.visit_buffer(node.buffer), self.visit(node.value), indices, span=span_of(node))

    def visit_evaluate_(self, node: Any) -> Any:
        return tirx.Evaluate(self.visit(node.value), span_of(node))

    def visit_bind_(self, node: Any) -> Any:
        return tirx.Bind(node.var, self.visit(node.value), span_of(node))

    def visit_seq_stmt_(self, node: Any) -> Any:
        return sequence(self.visit_all(node.seq))

    def visit_attr_stmt_(self, node: Any) -> Any:
        return tirx.AttrStmt(node.node, node.attr_key, self.visit(node.value), self.visit(node.body), span_of(node))

    def visit_if_then_else_(self, node: Any) -> Any:
        otherwise = None if node.else_case is None else self.visit(node.else_case)
        return tirx.IfThenElse(self.visit(node.condition), self.visit(node.then_case), otherwise, span_of(node))

    def visit_for_(self, node: Any) -> Any:
        return rebuild_for(node, self.visit(node.min), self.visit(node.extent), self.visit(node.body))

    def visit_sblock_(self, node: Any) -> Any:
        return rebuild_block(node, body=self.visit(node.body))

    def visit_sblock_realize_(self, node: Any) -> Any:
        return tirx.SBlockRealize(node.iter_values, node.predicate, self.visit(node.block), span_of(node))


def rebuild_for(node: Any, minimum: Any, extent: Any, body: Any) -> Any:
    return tirx.For(
        node.loop_var, minimum, extent, node.kind, body, node.thread_binding, node.annotations, node.step, span_of(node)
    )


def rebuild_block(
    node: Any, body: Any = None, alloc_buffers: Any = None, annotations: dict[str, Any] | None = None
) -> Any:
    return tirx.SBlock(
        node.iter_vars,
        node.reads,
        node.writes,
        node.name_hint,
        node.body if body is None else body,
        node.init,
        node.alloc_buffers if alloc_buffers is None else alloc_buffers,
        node.match_buffers,
        dict(node.annotations) if annotations is None else annotations,
        span_of(node),
    )


ROOT_BLOCK = "tilelang_root"
"""Name of the block that T.Kernel opens; it owns the kernel's allocations."""


class RootRewriter(Rewriter):
    """Rewrites the inside of the kernel's root block; :meth:`finish_root` may add allocations and annotations."""

    def visit_sblock_(self, node: Any) -> Any:
        if node.name_hint != ROOT_BLOCK:
            return super().visit_sblock_(node)
        return self.finish_root(node, self.visit(node.body))

    def finish_root(self, node: Any, body: Any) -> Any:
        return rebuild_block(node, body=body)


def walk(node: Any, visit: Callable[[Any], None]) -> None:
    """Calls ``visit`` on every node below a statement or expression, children first."""
    # Collected first: an exception must not travel through TVM's own traversal.
    nodes: list[Any] = []
    tirx.stmt_functor.post_order_visit(node if isinstance(node, tirx.Stmt) else tirx.Evaluate(node), nodes.append)
    for found in nodes:
        visit(found)


def root_block(function: Any) -> Any:
    found: list[Any] = []
    walk(function.body, lambda n: found.append(n) if isinstance(n, tirx.SBlock) and n.name_hint == ROOT_BLOCK else None)
    if not found:
        raise LoweringError("the function opens no T.Kernel")
    return found[0]


class BufferMap:
    """Buffers keyed by identity (several views may share a name)."""

    def __init__(self, items: Iterable[tuple[Any, Any]] = ()) -> None:
        self._items = list(items)

    def get(self, buffer: Any, default: Any = None) -> Any:
        for key, value in self._items:
            if key.same_as(buffer):
                return value
        return default

    def __contains__(self, buffer: Any) -> bool:
        return any(key.same_as(buffer) for key, _ in self._items)

    def __setitem__(self, buffer: Any, value: Any) -> None:
        for position, (key, _) in enumerate(self._items):
            if key.same_as(buffer):
                self._items[position] = (key, value)
                return
        self._items.append((buffer, value))

    def setdefault(self, buffer: Any, make: Callable[[], Any]) -> Any:
        if buffer not in self:
            self[buffer] = make()
        return self.get(buffer)

    def items(self) -> list[tuple[Any, Any]]:
        return list(self._items)

    def values(self) -> list[Any]:
        return [value for _, value in self._items]
