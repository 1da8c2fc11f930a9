"""The only door to TileLang's and TVM's internals for the lowering; everything version-bound sits here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tilelang
from tilelang import tvm
from tilelang.ir import get_buffer_span, get_stmt_span, span_to_location
from tvm import tirx
from tvm.tirx import PyStmtExprMutator

__all__ = [
    "COMPILER_LIBRARIES",
    "PyStmtExprMutator",
    "buffer_location",
    "called",
    "conjuncts",
    "fragment",
    "functions",
    "gemm",
    "layout",
    "mutator",
    "pass_context",
    "pass_instrument",
    "post_order",
    "prim_func",
    "rebuild_call",
    "source_location",
    "statement_location",
    "structurally_equal",
    "target_of",
    "text",
    "tilelang",
    "tirx",
    "tvm",
]

mutator: Callable[[type], Any] = tirx.functor.mutator
"""Class decorator for subclasses of :class:`PyStmtExprMutator`."""

pass_instrument: Callable[[type], Any] = tvm.ir.instrument.pass_instrument
"""Class decorator for what watches TVM's passes: ``run_before_pass(module, info)``, ``run_after_pass``."""

COMPILER_LIBRARIES = tuple(
    Path(tilelang.__file__).parent / "lib" / name for name in ("libtvm_compiler.so", "libtilelang.so")
)
"""TVM's compiler and TileLang's passes, both loaded with :mod:`tilelang`."""

COMPOSITE = "kf.composite"


def called(node: Any) -> str:
    """Name of the operator a Call calls, else ``""``."""
    return getattr(node.op, "name", "") if isinstance(node, tirx.Call) else ""


def rebuild_call(call: Any, arguments: Sequence[Any]) -> Any:
    """``call`` with other arguments; annotations and dtype are kept."""
    return tirx.Call(call.dtype, call.op, list(arguments), annotations=call.annotations)


def gemm(a: Any, b: Any, out: Any, transpose_b: bool) -> Any:
    """The call that puts a @ b, or a @ b^T, into ``out``; all three are buffers."""
    return tilelang.language.gemm(a, b, out, transpose_B=transpose_b, clear_accum=True)


def fragment(shape: Sequence[Any], place: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """The layout of a tile in registers: ``place`` gives an element's thread and its place there."""
    return tilelang.layout.Fragment(list(shape), forward_fn=place)


def layout(shape: Sequence[Any], place: Callable[[Any, Any], Any]) -> Any:
    """The layout of a tile in shared memory: ``place`` gives an element's offset."""
    return tilelang.layout.Layout(list(shape), place)


def post_order(node: Any, visit: Callable[[Any], None]) -> None:
    """Call ``visit`` on every node below ``node``, children first."""
    tirx.stmt_functor.post_order_visit(node, visit)


def prim_func(
    base: Any, body: Any, extra_params: Sequence[Any] = (), extra_buffers: Sequence[tuple[Any, Any]] = ()
) -> Any:
    """``base`` with another body and further parameters: scalars, and (handle, buffer) pairs."""
    buffers = dict(base.buffer_map.items())
    params = list(base.params)
    for handle, buffer in extra_buffers:
        params.append(handle)
        buffers[handle] = buffer
    params.extend(extra_params)
    return tirx.PrimFunc(params, body, base.ret_type, buffers, attrs=base.attrs)


def target_of(description: Any) -> Any:
    """A TVM target from its dict."""
    return tvm.target.Target(dict(description))


def pass_context(config: Any, instruments: Sequence[Any] = ()) -> Any:
    """The context under which TileLang lowers; ``instruments`` watch its passes."""
    return tvm.transform.PassContext(opt_level=3, config=dict(config), instruments=list(instruments))


def conjuncts(condition: Any) -> list[Any]:
    """The conditions that a condition joins with "and"."""
    if isinstance(condition, tirx.And):
        return conjuncts(condition.a) + conjuncts(condition.b)
    if called(condition) == "tirx.bitwise_and" and str(condition.dtype) == "bool":
        return conjuncts(condition.args[0]) + conjuncts(condition.args[1])
    return [condition]


def functions(module: Any) -> list[Any]:
    """The functions of an IRModule."""
    return [function for _, function in module.functions.items()]


def text(node: Any) -> str:
    """``node`` printed, as a plain string: TVM's own string class must not outlive the objects it points into."""
    return "".join(str(node))


def source_location(node: Any) -> str:
    """``file:line`` of a node, as far as it carries one."""
    span = getattr(node, "span", None)
    if span is None or span.source_name is None:
        return ""
    return f"{span.source_name.name}:{span.line}"


def statement_location(statement: Any) -> tuple[str, int] | None:
    """File and line of the source statement that made ``statement``; expressions carry none of their own."""
    location: tuple[str, int] | None = span_to_location(get_stmt_span(statement))
    return location


def buffer_location(buffer: Any) -> tuple[str, int] | None:
    """File and line where a buffer was declared or allocated."""
    location: tuple[str, int] | None = span_to_location(get_buffer_span(buffer))
    return location


def structurally_equal(a: Any, b: Any) -> bool:
    """Whether two expressions are the same, free variables by identity."""
    return bool(tvm.ir.structural_equal(a, b))
