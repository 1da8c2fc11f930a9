"""What the threads of a vector function keep for themselves is no business of TileLang's scheduler.

Between two tasks TileLang 0.1.15 compares every buffer of the one with every buffer of the other, and it asks z3
whether a buffer's own accesses in two turns of a loop meet. Most of a kernel's buffers are scalars of vector functions,
of which no other task knows. While tasks are put in order, loads and stores of these are calls that name no buffer.
"""

from __future__ import annotations

from typing import Any

import tilelang.ascend.transform as stages
from tvm import tirx

from .rewriter import on_functions, op, op_name, span_of, walk
from .vector_regions import VECTOR_FUNCTION

FIRST, LAST = "AutoSchedule", "InsertSync"
"""Between them, themselves included, TileLang's passes compare tasks."""

HIDDEN = "kf.hidden_locals"
"""Attribute of a function whose locals are hidden: the buffers, in the order of their numbers."""

_LOAD, _STORE = "kf_load_local", "kf_store_local"


class _Uses:
    """Which storage vector functions allocate, and which of it decides where and how often other buffers are met."""

    def __init__(self, function: Any) -> None:
        self.allocated: set[Any] = set()
        self.deciding: set[Any] = set()
        self._bound: dict[Any, Any] = {}
        walk(function.body, self._visit)

    def _visit(self, node: Any) -> None:
        if isinstance(node, tirx.SBlock) and node.name_hint == VECTOR_FUNCTION:
            self.allocated.update(buffer.data for buffer in node.alloc_buffers)
        elif isinstance(node, tirx.Bind):
            self._bound[node.var] = node.value
        elif isinstance(node, (tirx.BufferLoad, tirx.BufferStore)):
            self._decide(node.indices)
        elif isinstance(node, tirx.For):
            self._decide([node.min, node.extent])
        elif isinstance(node, tirx.Call) and op_name(node) in ("tirx.address_of", "tl.access_ptr", "tl.region"):
            self._decide(node.args)

    def _decide(self, expressions: Any) -> None:
        for expression in expressions:
            if not isinstance(expression, (tirx.IntImm, tirx.StringImm)):
                walk(expression, self._used)

    def _used(self, node: Any) -> None:
        if isinstance(node, tirx.BufferLoad):
            self.deciding.add(node.buffer.data)
        elif isinstance(node, tirx.Var) and node in self._bound:
            self._decide([self._bound.pop(node)])


def hide_locals(function: Any) -> Any:
    """Replace loads and stores of a vector function's own buffers by calls with the buffer's number.

    Buffers stay that an index, a loop's bounds or an address depends on: by these TileLang sees what a task touches.
    """
    uses = _Uses(function)
    private = uses.allocated - uses.deciding
    numbers: dict[Any, int] = {}

    def hide(node: Any) -> Any:
        if node.buffer.data not in private:
            return None
        number = tirx.IntImm("int32", numbers.setdefault(node.buffer, len(numbers)))
        if isinstance(node, tirx.BufferLoad):
            arguments = [tirx.StringImm(_LOAD), number, *node.indices]
            return tirx.Call(node.dtype, op("tirx.call_pure_extern"), arguments, span=span_of(node))
        arguments = [tirx.StringImm(_STORE), number, node.value, *node.indices]
        return tirx.Evaluate(tirx.Call("int32", op("tirx.call_extern"), arguments), span_of(node))

    body = tirx.stmt_functor.ir_transform(function.body, None, hide, ["tirx.BufferLoad", "tirx.BufferStore"])
    return function.with_body(body).with_attr(HIDDEN, list(numbers))


def reveal_locals(function: Any) -> Any:
    """Undo :func:`hide_locals`."""
    hidden = function.attrs[HIDDEN]

    def called(node: Any, name: str) -> bool:
        return op_name(node).startswith("tirx.call_") and getattr(node.args[0], "value", "") == name

    def reveal(node: Any) -> Any:
        if isinstance(node, tirx.Call):
            if not called(node, _LOAD):
                return None
            return tirx.BufferLoad(hidden[int(node.args[1])], node.args[2:], span=span_of(node))
        if not called(node.value, _STORE):
            return None
        _, number, value, *indices = node.value.args
        return tirx.BufferStore(hidden[int(number)], value, indices, span=span_of(node))

    body = tirx.stmt_functor.ir_transform(function.body, None, reveal, ["tirx.Call", "tirx.Evaluate"])
    return function.with_body(body).without_attr(HIDDEN)


def install() -> None:
    """Make TileLang's Ascend pipeline hide locals before it compares tasks and reveal them afterwards."""
    first, last = getattr(stages, FIRST), getattr(stages, LAST)
    setattr(stages, FIRST, lambda: lambda module: first()(on_functions(hide_locals, module)))
    setattr(stages, LAST, lambda: lambda module: on_functions(reveal_locals, last()(module)))
