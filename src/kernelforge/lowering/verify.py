"""The verifier of the portable subset: what it accepts means the same on every backend (docs/portable-subset.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tir import COMPOSITE, buffer_location, called, post_order, statement_location, tirx
from .verify_context import Context
from .verify_expressions import check_expression, refused_dtype, short_name, tile_name
from .verify_fp32 import Fp32Rules
from .verify_source import Location

_SCOPES = ("global", "shared", "shared.dyn", "local.fragment", "local.var", "local")
_GRID = ("blockIdx.x", "blockIdx.y", "blockIdx.z")
_ATOMICS = ("tl.atomic_add_elem_op", "tl.atomic_max_elem_op", "tl.atomic_min_elem_op")
_LOOP_ANNOTATIONS = ("num_stages",)
_BLOCK_ANNOTATIONS = ("tl.launch_threads",)
_REDUCE_ADVICE = "row_sum of numerics for fp32, a serial loop or a halving tree for integers"
_TILE_ADVICE = {
    "cumsum": "a serial loop inside T.Parallel",
    "cummax": "a serial loop inside T.Parallel",
    "atomicadd": "T.atomic_add on one integer element inside T.Parallel",
    "transpose": "T.Parallel with swapped indices",
}


class NotPortable(ValueError):
    """A kernel leaves the portable subset.

    Attributes:
        violations: one line each, ``"file:line: what, and what to use instead"``.
    """

    def __init__(self, name: str, violations: list[str]) -> None:
        self.violations = tuple(violations)
        super().__init__("\n".join([f"kernel {name!r} leaves the portable subset:", *violations]))


def verify(function: Any) -> None:
    """Check a traced ``PrimFunc`` against the portable subset.

    Raises:
        NotPortable: names every violation with its source line and what to use instead.
    """
    check = _Check()
    check.function(function)
    if check.found:
        name = function.attrs["global_symbol"] if function.attrs and "global_symbol" in function.attrs else "kernel"
        raise NotPortable(str(name), check.messages())


class _Check(Context):
    def __init__(self) -> None:
        super().__init__()
        self._threads: set[Any] = set()
        self._grid: set[str] = set()
        self._blocks = 0
        self._parallel = 0
        self._nest: Any = None
        self._believed: list[tuple[Any, Any, bool]] = []
        self._fp32 = Fp32Rules(self.resolve)

    # Functions, buffers.

    def function(self, function: Any) -> None:
        for param in function.params:
            if param in function.buffer_map:
                self._parameter(function.buffer_map[param])
            else:
                self._dtype(str(param.dtype), f"parameter {param.name}", None)
        self.statement(function.body)

    def _dtype(self, dtype: str, what: str, at: Location | None) -> None:
        message = refused_dtype(dtype, what)
        if message is not None:
            self.report(message, at)

    def _parameter(self, buffer: Any) -> None:
        at = buffer_location(buffer)
        self._dtype(str(buffer.dtype), f"tensor {buffer.name}", at)
        if str(buffer.scope()) != "global":
            self.report(f"tensor {buffer.name} in scope {buffer.scope()} is not portable: use T.Tensor", at)
        for axis, extent in enumerate(buffer.shape):
            if isinstance(extent, tirx.IntImm) or (axis == 0 and isinstance(extent, tirx.Var)):
                continue
            self.report(
                f"extent {extent} of axis {axis} of tensor {buffer.name} is not portable: "
                "only the leading extent may be dynamic, as a plain T.dynamic name",
                at,
            )
        contiguous = 1
        for extent, stride in reversed(list(zip(buffer.shape, buffer.strides, strict=True))):
            if not (isinstance(stride, tirx.IntImm) and int(stride) == contiguous):
                self.report(f"strides of tensor {buffer.name} are not portable: use a contiguous T.Tensor", at)
                break
            if not isinstance(extent, tirx.IntImm):
                break
            contiguous *= int(extent)

    def _allocation(self, buffer: Any) -> None:
        at = buffer_location(buffer)
        scope = str(buffer.scope())
        if scope not in _SCOPES:
            self.report(f"scope {scope} is not portable: use T.alloc_shared, T.alloc_fragment or T.alloc_local", at)
        self._dtype(str(buffer.dtype), f"buffer {buffer.name}", at)
        if not all(isinstance(extent, tirx.IntImm) for extent in buffer.shape):
            self.report(
                f"dynamic extent of buffer {buffer.name} is not portable: allocate tiles of constant shape",
                at,
            )

    # Statements.

    def statement(self, node: Any) -> Location:
        """Check a statement and give the line that its errors name."""
        at = statement_location(node)
        visible = self.visible(at, node) if at else self.at[-1] if self.at else ("<unknown>", 0)
        self.at.append(visible)
        try:
            self.source()
            handler = getattr(self, "_" + type(node).__name__.lower(), None)
            if handler is None:
                self.report(f"statement {type(node).__name__} is not portable: use what docs/portable-subset.md lists")
            else:
                handler(node)
        finally:
            self.at.pop()
        return visible

    def _seqstmt(self, node: Any) -> None:
        outer = self.at[-1]
        for statement in node.seq:
            file, line = self.statement(statement)
            if file == outer[0] and line >= outer[1]:
                self.at[-1] = (file, line + 1)  # a macro of TileLang's that follows is found after this line
        self.at[-1] = outer

    def _sblockrealize(self, node: Any) -> None:
        if str(node.block.name_hint) != "root":
            self._blocks += 1
            if self._blocks > 1:
                self.report("a nested block is not portable (schedulers do not see its accesses): use plain statements")
        for buffer in node.block.alloc_buffers:
            self._allocation(buffer)
        for key in node.block.annotations:
            if key not in _BLOCK_ANNOTATIONS:
                self.report(
                    f"block annotation {key!r} is not portable: layouts and schedules belong to a backend's passes"
                )
        self.statement(node.block.body)

    def _bind(self, node: Any) -> None:
        if called(node.value) == "tl.launch_thread_idx":
            self._threads.add(node.var)
            return
        self._expression(node.value)
        self.bound[node.var] = node.value

    def _attrstmt(self, node: Any) -> None:
        if str(node.attr_key) != COMPOSITE:
            self.report(
                f"attribute {node.attr_key!s} is not portable: hints for one device belong to its backend's passes"
            )
        else:
            self._composite(node)
        self.statement(node.body)

    def _composite(self, node: Any) -> None:
        value, parameters = node.value, node.node
        operands = value.args[1:] if called(value) == "tirx.call_extern" else []
        sound = called(value) == "tirx.call_extern" and isinstance(value.args[0], tirx.StringImm)
        sound = sound and all(
            isinstance(operand, tirx.BufferLoad) and all(_is_zero(index) for index in operand.indices)
            for operand in operands
        )
        sound = sound and hasattr(parameters, "items") and all(_is_integer(number) for _, number in parameters.items())
        if not sound:
            self.report(f"this {COMPOSITE} region is not portable: open it with numerics.tile.composite")

    def _for(self, node: Any) -> None:
        self._expression(node.min)
        self._expression(node.extent)
        kind = node.kind
        if kind == tirx.ForKind.THREAD_BINDING:
            self._block_axis(str(node.thread_binding.thread_tag))
        elif kind == tirx.ForKind.PARALLEL:
            if not isinstance(node.extent, tirx.IntImm):
                self.report("dynamic extent of T.Parallel is not portable: use a constant extent and an if inside")
        elif kind not in (tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED):
            self.report("T.vectorized is not portable: use T.Parallel; backends vectorize")
        elif self.reads_data(node.extent) and _holds_tile_code(node.body):
            self.report(
                "a data-dependent trip count around T.Parallel or a tile operator is not portable "
                "(no barrier, deadlock): use a loop of bounded length with an if inside"
            )
        for key in node.annotations:
            if key not in _LOOP_ANNOTATIONS:
                self.report(
                    f"loop annotation {key!r} is not portable: layouts and schedules belong to a backend's passes"
                )
        if kind != tirx.ForKind.PARALLEL:
            self.statement(node.body)
            return
        if self._parallel and not node.same_as(self._nest):
            self.report("T.Parallel inside T.Parallel is not portable: use T.Parallel(m, n), or T.serial inside")
        self._nest = node.body
        self._parallel += 1
        self.statement(node.body)
        self._parallel -= 1

    def _block_axis(self, tag: str) -> None:
        if tag not in _GRID:
            self.report(f"binding to {tag} is not portable: use T.Parallel")
        elif tag in self._grid:
            self.report("more than one T.Kernel is not portable: use one kernel with at most three grid axes")
        self._grid.add(tag)

    def _while(self, node: Any) -> None:
        self._expression(node.condition)
        self.report("while is not portable (no barrier, deadlock): use a loop of bounded length with an if inside")
        self.statement(node.body)

    def _ifthenelse(self, node: Any) -> None:
        self._expression(node.condition)
        self.statement(node.then_case)
        if node.else_case is not None:
            self._where_false(node.condition, lambda: self.statement(node.else_case))

    def _bufferstore(self, node: Any) -> None:
        if not self._parallel and str(node.buffer.scope()) not in ("local.var", "local"):
            self.report(
                f"an assignment to {node.buffer.name} outside T.Parallel is not portable "
                "(every thread would make it): use T.Parallel(1), or T.alloc_var for a scalar"
            )
        for index in node.indices:
            self._expression(index)
        self._expression(node.value)

    def _evaluate(self, node: Any) -> None:
        if called(node.value).startswith("tl.tileop."):
            self._tile_operator(node.value)
        else:
            self._expression(node.value)

    # Operators.

    def _tile_operator(self, call: Any) -> None:
        name = tile_name(call)
        if name not in ("copy", "fill", "gemm"):
            default = "T.copy, T.fill, T.gemm on int8, and T.Parallel"
            advice = _REDUCE_ADVICE if name.startswith("reduce") else _TILE_ADVICE.get(name, default)
            self.report(f"T.{name} is not portable: use {advice}")
            return
        if self._parallel:
            self.report(f"T.{name} inside T.Parallel is not portable: use element assignments, or move it out")
        for key in call.annotations:
            self.report(f"option {key} of T.{name} is not portable: schedules belong to a backend's passes")
        regions = [argument for argument in call.args if called(argument) in ("tl.region", "tl.tileop.region")]
        loads = [region.args[0] for region in regions]
        for load in loads:
            for index in load.indices:
                self._expression(index)
        dtypes = [str(load.dtype) for load in loads]
        if name == "copy" and len(set(dtypes)) > 1:
            self.report(
                f"T.copy from {dtypes[0]} to {dtypes[1]} is not portable: convert with T.cast inside T.Parallel"
            )
        if name == "gemm" and dtypes != ["int8", "int8", "int32"]:
            self.report(
                f"T.gemm on {dtypes[0]} x {dtypes[1]} -> {dtypes[2]} is not portable: "
                "use int8 x int8 -> int32, or a dot of numerics.exact_dot"
            )
        if name == "fill":
            self._expression(call.args[1])

    def _atomic(self, call: Any) -> None:
        name = called(call)
        spelled = f"T.{short_name(call).removesuffix('_elem_op')}"
        if name not in _ATOMICS:
            self.report(f"{spelled} is not portable: use T.atomic_add, T.atomic_max or T.atomic_min, without a result")
            return
        target = call.args[0].args[0]
        if str(target.dtype) not in ("int32", "uint32"):
            self.report(
                f"{spelled} on {target.dtype} is not portable (its order is not pinned): use int32, or sum in order"
            )
        for index in target.indices:
            self._expression(index)
            if self.holds(index, lambda part: called(part) == "tirx.if_then_else" or isinstance(part, tirx.Select)):
                self.report(f"a conditional index of {spelled} is not portable: store the index in a buffer first")
        self._expression(call.args[1])

    # Expressions.

    def _expression(self, node: Any) -> None:
        if called(node).startswith("tl.atomic_"):
            self._atomic(node)
            return
        if not check_expression(node, self.report):
            return
        self._fp32.check(node, self.report)
        self._fp32.check_under(node, self._believed, self.report)
        if isinstance(node, tirx.Var) and node in self._threads:
            self.report("a thread index is not portable: use T.Parallel, not every device has threads")
        elif called(node) == "tirx.if_then_else":
            self._choice(*node.args)
        elif isinstance(node, tirx.Select):
            self._choice(node.condition, node.true_value, node.false_value)
        else:
            for operand in _operands(node):
                self._expression(operand)

    def _choice(self, condition: Any, true_value: Any, false_value: Any) -> None:
        self._expression(condition)
        self._expression(true_value)
        self._where_false(condition, lambda: self._expression(false_value))

    def _where_false(self, condition: Any, check: Callable[[], object]) -> None:
        believed = self._fp32.negated(condition)
        self._believed.extend(believed)
        check()
        del self._believed[len(self._believed) - len(believed) :]


def _operands(node: Any) -> list[Any]:
    if isinstance(node, tirx.Call):
        return [argument for argument in node.args if not isinstance(argument, tirx.StringImm)]
    if isinstance(node, tirx.BufferLoad):
        return list(node.indices)
    if isinstance(node, tirx.Cast):
        return [node.value]
    if isinstance(node, tirx.Not):
        return [node.a]
    return [node.a, node.b] if hasattr(node, "a") and hasattr(node, "b") else []


def _is_zero(index: Any) -> bool:
    return isinstance(index, tirx.IntImm) and int(index) == 0


def _is_integer(number: Any) -> bool:
    return isinstance(number, (int, tirx.IntImm)) and not isinstance(number, bool)


def _holds_tile_code(statement: Any) -> bool:
    """Whether work of the whole block, which a barrier may have to follow, sits below a statement."""
    found = False

    def visit(node: Any) -> None:
        nonlocal found
        parallel = isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL
        found = found or parallel or called(node).startswith("tl.tileop.")

    post_order(statement, visit)
    return found
