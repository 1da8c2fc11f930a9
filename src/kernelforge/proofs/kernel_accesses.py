"""Which elements a traced kernel reads and writes, as z3 terms: a symbolic execution of its portable TIR.

Block and loop indices are free integers within their ranges, integer scalars are followed through assignments and
branches, and what is read from memory is an unknown of its dtype's range unless the caller says what a buffer holds.
Integers are unbounded: no index is near 2^31.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import z3

from ..lowering.tir import called, post_order, source_location, statement_location, text, tirx

_SCALAR = "local.var"
_UNROLLED = 64
"""Loops over scalars alone, up to this many turns, are followed turn by turn."""

_READS, _WRITES = 1, 2
"""Bits of a region's mode."""


@dataclass(frozen=True)
class Access:
    """A box of elements that a statement touches.

    Attributes:
        buffer, scope, shape: what is touched; extents in z3 integers.
        start, extent: the box; one element is a box of ones.
        path: what holds where the statement runs (ranges of the indices around it, conditions taken).
        indices: the block's and the loops' indices around it, outermost first; ``parallel`` those of parallel loops.
        writes: a store; else a load.
        clipped: a tile copy, which leaves out what lies beyond the buffer's extents.
        atomic: an atomic update.
        where: the source line, as far as it is known.
    """

    buffer: str
    scope: str
    shape: tuple[z3.ArithRef, ...]
    start: tuple[z3.ArithRef, ...]
    extent: tuple[int, ...]
    path: tuple[z3.BoolRef, ...]
    indices: tuple[z3.ArithRef, ...]
    parallel: tuple[z3.ArithRef, ...]
    writes: bool
    clipped: bool = False
    atomic: bool = False
    where: str = ""


Contents = Callable[[list[z3.ArithRef]], z3.ArithRef | None]
"""What a buffer holds at an index; None where that is not known."""


@dataclass
class Kernel:
    """Every access of a kernel.

    Attributes:
        blocks: indices of the grid.
        unknowns: values that were read from memory; another block may read others.
        facts: what always holds: extents are positive, unknowns are within their dtype.
    """

    accesses: list[Access] = field(default_factory=list)
    blocks: list[z3.ArithRef] = field(default_factory=list)
    unknowns: list[z3.ExprRef] = field(default_factory=list)
    facts: list[z3.BoolRef] = field(default_factory=list)
    extents: dict[str, z3.ArithRef] = field(default_factory=dict)


def accesses(function: Any, contents: Mapping[str, Contents] | None = None) -> Kernel:
    """Execute a traced ``PrimFunc`` symbolically; dynamic extents are positive integers of any size."""
    walk = _Walk(contents or {})
    for buffer in function.buffer_map.values():
        for extent in buffer.shape:
            if isinstance(extent, tirx.Var) and extent not in walk.bound:
                walk.bound[extent] = z3.Int(text(extent))
                walk.kernel.extents[text(extent)] = walk.bound[extent]
                walk.kernel.facts.append(walk.bound[extent] >= 1)
    walk.statement(function.body)
    return walk.kernel


class _Walk:
    def __init__(self, contents: Mapping[str, Contents]) -> None:
        self.kernel = Kernel()
        self.contents = contents
        self.bound: dict[Any, Any] = {}
        self.scalars: dict[Any, Any] = {}
        self.path: list[z3.BoolRef] = []
        self.loops: list[z3.ArithRef] = []
        self.parallel: list[z3.ArithRef] = []
        self.where = ""

    # Statements.

    def statement(self, node: Any) -> None:
        location = statement_location(node) if isinstance(node, tirx.Stmt) else None
        self.where = f"{location[0]}:{location[1]}" if location else source_location(node) or self.where
        getattr(self, f"_statement_{_snake(node)}")(node)

    def _statement_seq_stmt(self, node: Any) -> None:
        for part in node.seq:
            self.statement(part)

    def _statement_s_block_realize(self, node: Any) -> None:
        self.statement(node.block)

    def _statement_s_block(self, node: Any) -> None:
        self.statement(node.body)

    def _statement_attr_stmt(self, node: Any) -> None:
        self.statement(node.body)  # a composite's operands are touched by its body

    def _statement_bind(self, node: Any) -> None:
        self.bound[node.var] = self.value(node.value)

    def _statement_evaluate(self, node: Any) -> None:
        call = node.value
        atomic = "atomic" in called(call)
        for argument in getattr(call, "args", ()):
            if called(argument) == "tl.region":
                self._region(argument, clipped=called(call) == "tl.tileop.copy")
            elif isinstance(argument, tirx.BufferLoad) or (atomic and called(argument) == "tirx.address_of"):
                load = argument if isinstance(argument, tirx.BufferLoad) else argument.args[0]
                self._touch(load.buffer, [self.value(i) for i in load.indices], writes=atomic, atomic=atomic)
            else:
                self.value(argument)

    def _region(self, region: Any, clipped: bool) -> None:
        load, mode, *extent = region.args
        start = [self.value(index) for index in load.indices]
        extents = [int(e) for e in extent]
        for writes, bit in ((False, _READS), (True, _WRITES)):
            if int(mode) & bit:
                inside = clipped and load.buffer.scope() == "global"
                self._touch(load.buffer, start, writes=writes, extent=extents, clipped=inside)

    def _statement_buffer_store(self, node: Any) -> None:
        value = self.value(node.value)
        if node.buffer.scope() == _SCALAR:
            self.scalars[node.buffer] = value
            return
        self._touch(node.buffer, [self.value(index) for index in node.indices], writes=True)

    def _statement_if_then_else(self, node: Any) -> None:
        condition = self._truth(node.condition)
        before = dict(self.scalars)
        self._under(condition, node.then_case)
        taken, self.scalars = self.scalars, before
        if node.else_case is not None:
            before = dict(before)
            self._under(z3.Not(condition), node.else_case)
        for buffer in {*taken, *self.scalars}:
            one, other = taken.get(buffer), self.scalars.get(buffer)
            if one is not other:
                known = one is not None and other is not None
                self.scalars[buffer] = z3.If(condition, one, other) if known else None

    def _under(self, condition: z3.BoolRef, body: Any) -> None:
        self.path.append(condition)
        self.statement(body)
        self.path.pop()

    def _statement_for(self, node: Any) -> None:
        start, extent = self.value(node.min), self.value(node.extent)
        if _only_scalars(node) and z3.is_int_value(extent) and extent.as_long() <= _UNROLLED:
            for turn in range(extent.as_long()):
                self.bound[node.loop_var] = z3.simplify(start + turn)
                self.statement(node.body)
            return
        index = z3.FreshInt(text(node.loop_var))
        self.bound[node.loop_var] = index
        self.path.append(z3.And(index >= start, index < start + extent))
        self.loops.append(index)
        parallel = node.kind == tirx.ForKind.PARALLEL
        if node.thread_binding is not None:
            self.kernel.blocks.append(index)
        elif parallel:
            self.parallel.append(index)
        self._forget(node.body)
        self.statement(node.body)
        self._forget(node.body)
        self.path.pop()
        self.loops.pop()
        if parallel:
            self.parallel.pop()

    def _forget(self, body: Any) -> None:
        """Scalars that a loop's body assigns have any value at the start of a turn, and after the loop."""

        def visit(node: Any) -> None:
            if isinstance(node, tirx.BufferStore) and node.buffer.scope() == _SCALAR:
                self.scalars.pop(node.buffer, None)

        post_order(body, visit)

    # Expressions: a z3 integer or truth value, None for floats.

    def value(self, node: Any) -> Any:
        name, binary = _snake(node), _BINARY.get(type(node).__name__)
        found = self._binary(node, binary) if binary else getattr(self, f"_value_{name}")(node)
        return self._unknown(str(node.dtype)) if found is None and _is_integer(node) else found

    def _truth(self, node: Any) -> z3.BoolRef:
        found = self.value(node)
        if found is None:
            found = z3.FreshBool("condition")
            self.kernel.unknowns.append(found)
        return found if z3.is_bool(found) else found != 0

    def _unknown(self, dtype: str) -> Any:
        unknown = z3.FreshInt("read")
        self.kernel.unknowns.append(unknown)
        bits = int("".join(filter(str.isdigit, dtype)) or 1)
        low, high = (0, 2**bits) if dtype.startswith(("uint", "bool")) else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        self.kernel.facts.append(z3.And(unknown >= low, unknown < high))
        return unknown

    def _value_int_imm(self, node: Any) -> Any:
        return z3.BoolVal(bool(node.value)) if str(node.dtype) == "bool" else z3.IntVal(int(node.value))

    def _value_float_imm(self, node: Any) -> None:
        return None

    def _value_string_imm(self, node: Any) -> None:
        return None

    def _value_var(self, node: Any) -> Any:
        return self.bound.get(node)

    def _value_buffer_load(self, node: Any) -> Any:
        if node.buffer.scope() == _SCALAR:
            if self.scalars.get(node.buffer) is None and _is_integer(node):
                self.scalars[node.buffer] = self._unknown(str(node.dtype))
            return self.scalars.get(node.buffer)
        index = [self.value(i) for i in node.indices]
        self._touch(node.buffer, index, writes=False)
        holds = self.contents.get(text(node.buffer.name))
        return holds([z3.simplify(i) for i in index]) if holds is not None else None

    def _value_cast(self, node: Any) -> Any:
        inner = self.value(node.value)
        if inner is None or z3.is_bool(inner):
            return inner if inner is None else z3.If(inner, z3.IntVal(1), z3.IntVal(0))
        return inner if _holds(str(node.dtype), str(node.value.dtype)) else None

    def _value_select(self, node: Any) -> Any:
        return self._choice(node.condition, node.true_value, node.false_value)

    def _choice(self, condition: Any, one: Any, other: Any) -> Any:
        truth = self._truth(condition)
        values = []
        for holds, branch in ((truth, one), (z3.Not(truth), other)):
            self.path.append(holds)
            values.append(self.value(branch))
            self.path.pop()
        return None if any(v is None for v in values) else z3.If(truth, *values)

    def _value_not(self, node: Any) -> Any:
        return z3.Not(self._truth(node.a))

    def _value_call(self, node: Any) -> Any:
        name = called(node).removeprefix("tirx.")
        if name == "if_then_else":
            return self._choice(*node.args)
        operands = [self.value(argument) for argument in node.args]
        if len(operands) == 2 and all(z3.is_bool(operand) for operand in operands) and name in _BETWEEN_TRUTHS:
            return _BETWEEN_TRUTHS[name](*operands)
        if len(operands) == 2 and z3.is_int(operands[0]) and z3.is_int_value(operands[1]):
            left, right = operands[0], operands[1].as_long()
            if name == "shift_right":
                return left / 2**right
            if name == "shift_left":
                return left * 2**right
            if name == "bitwise_and" and right >= 0 and right & (right + 1) == 0:
                return left % (right + 1)
        return None

    def _binary(self, node: Any, operation: Callable[[Any, Any], Any]) -> Any:
        if isinstance(node, (tirx.And, tirx.Or)):
            return operation(self._truth(node.a), self._truth(node.b))
        a, b = self.value(node.a), self.value(node.b)
        return None if a is None or b is None else operation(a, b)

    def _touch(
        self,
        buffer: Any,
        start: list[Any],
        writes: bool,
        extent: list[int] | None = None,
        clipped: bool = False,
        atomic: bool = False,
    ) -> None:
        if buffer.scope() == _SCALAR:
            return
        shape = [self.value(e) if isinstance(e, tirx.PrimExpr) else z3.IntVal(int(e)) for e in buffer.shape]
        self.kernel.accesses.append(
            Access(
                text(buffer.name),
                str(buffer.scope()),
                tuple(shape),
                tuple(start),
                tuple(extent or [1] * len(start)),
                tuple(self.path),
                tuple(self.loops),
                tuple(self.parallel),
                writes,
                clipped,
                atomic,
                self.where,
            )
        )


def _snake(node: Any) -> str:
    """A node's type as methods are named: ``SeqStmt`` is ``seq_stmt``."""
    return re.sub("(?<!^)(?=[A-Z])", "_", type(node).__name__).lower()


def _is_integer(node: Any) -> bool:
    return str(node.dtype).startswith(("int", "uint", "bool"))


def _holds(wide: str, narrow: str) -> bool:
    """Whether every value of one integer type is a value of the other."""
    if not wide.startswith(("int", "uint")) or not narrow.startswith(("int", "uint")):
        return False
    bits, narrow_bits = (int(dtype.removeprefix("u").removeprefix("int")) for dtype in (wide, narrow))
    if wide.startswith("uint"):
        return narrow.startswith("uint") and bits >= narrow_bits
    return bits > narrow_bits or (bits == narrow_bits and narrow.startswith("int"))


def _only_scalars(loop: Any) -> bool:
    """Whether a serial loop only computes scalars: it is then followed turn by turn."""
    if loop.kind != tirx.ForKind.SERIAL or loop.thread_binding is not None:
        return False
    others: list[Any] = []

    def visit(node: Any) -> None:
        store = isinstance(node, tirx.BufferStore) and node.buffer.scope() != _SCALAR
        if store or isinstance(node, (tirx.For, tirx.Evaluate)):
            others.append(node)

    post_order(loop.body, visit)
    return not others


def _truncated(a: Any, b: Any) -> Any:
    return z3.If(a >= 0, a / b, -((-a) / b))


_BETWEEN_TRUTHS: Mapping[str, Callable[[Any, Any], Any]] = {"bitwise_and": z3.And, "bitwise_or": z3.Or}
"""``&`` and ``|`` of conditions."""

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "FloorDiv": lambda a, b: a / b,  # z3's division rounds down for positive divisors
    "FloorMod": lambda a, b: a % b,
    "Div": _truncated,
    "Mod": lambda a, b: a - b * _truncated(a, b),
    "Min": lambda a, b: z3.If(a < b, a, b),
    "Max": lambda a, b: z3.If(a > b, a, b),
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "And": z3.And,
    "Or": z3.Or,
}
