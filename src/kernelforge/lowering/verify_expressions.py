"""Which expressions a portable kernel may hold, and what to use instead of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tir import called, tirx
from .verify_fp32 import is_fp32

Report = Callable[[str], None]

DTYPES = frozenset({"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32"})
"""Element types of buffers and values."""

_CALLS = frozenset(
    "tirx." + name
    for name in (
        "if_then_else",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "bitwise_not",
        "shift_left",
        "shift_right",
        "reinterpret",
    )
)

_NODES = (
    tirx.Var,
    tirx.IntImm,
    tirx.FloatImm,
    tirx.BufferLoad,
    tirx.Call,
    tirx.Cast,
    tirx.Add,
    tirx.Sub,
    tirx.Mul,
    tirx.Div,
    tirx.Mod,
    tirx.FloorDiv,
    tirx.FloorMod,
    tirx.Min,
    tirx.Max,
    tirx.EQ,
    tirx.NE,
    tirx.LT,
    tirx.LE,
    tirx.GT,
    tirx.GE,
    tirx.And,
    tirx.Or,
    tirx.Not,
    tirx.Select,
)

_ROUNDING = "the bits of x + 12582912.0 minus 0x4B400000 (round to nearest even)"
_BITS = "the bits, T.reinterpret('int32', x)"
_ADVICE = {
    "exp": "numerics.exp",
    "exp2": "numerics.exp2",
    "exp10": "numerics.exp2 of x * log2(10)",
    "__exp": "numerics.exp",
    "rsqrt": "numerics.rsqrt",
    "sqrt": "x * numerics.rsqrt(x)",
    "sigmoid": "numerics.sigmoid",
    "tanh": "numerics.sigmoid: 2 * sigmoid(2 * x) - 1",
    "fma": "a * b + c; a backend fuses it where the product is exact",
    "ieee_fmaf": "a * b + c; a backend fuses it where the product is exact",
    "fabs": "T.reinterpret('float32', bits & 0x7FFFFFFF)",
    "floor": _ROUNDING,
    "ceil": _ROUNDING,
    "round": _ROUNDING,
    "nearbyint": _ROUNDING,
    "trunc": _ROUNDING,
    "isnan": _BITS,
    "isinf": _BITS,
    "isfinite": _BITS,
    "fdiv": "numerics.recip and a multiplication",
    "ieee_fdiv": "numerics.recip and a multiplication",
    "fmod": "integer arithmetic",
    "break_loop": "T.if_then_else or an if in a loop of fixed length",
    "tvm_storage_sync": "drop it: passes place barriers between T.Parallel loops",
    "call_extern": "a primitive of numerics; a device's own functions belong in its backend",
    "call_pure_extern": "a primitive of numerics; a device's own functions belong in its backend",
    "launch_thread_idx": "T.Parallel: not every device has threads",
    "get_lane_idx": "T.Parallel: not every device has threads",
    "get_warp_idx": "T.Parallel: not every device has threads",
    "device_assert": "a check in the op, before the launch",
}
_MATH = "a polynomial or Newton steps of fp32 add, subtract and multiply (see numerics)"
_SCALAR_NAMES = {"tvm_storage_sync": "sync_threads", "break_loop": "break", "fabs": "abs"}
_WARP = ("shfl", "warp", "lane", "mbarrier", "sync", "wgmma", "ptx", "tma", "any_sync", "match")


def short_name(call: Any) -> str:
    """A call's name as kernels spell it, without ``T.``."""
    name = called(call).split(".")[-1]
    return _SCALAR_NAMES.get(name, name.removesuffix("_sync"))


def tile_name(call: Any) -> str:
    """A tile operator as kernels spell it: ``reduce_sum`` for a reduction."""
    name = short_name(call)
    kinds = [str(argument.value) for argument in call.args if isinstance(argument, tirx.StringImm)]
    return f"reduce_{kinds[0]}" if name == "reduce" and kinds else name


def refused_call(call: Any) -> str:
    """The message for a call that is not in the subset."""
    name = called(call).split(".")[-1]
    advice = _ADVICE.get(name)
    if advice is None and any(part in name for part in _WARP):
        advice = "T.Parallel and tile operators: not every device has threads, warps or barriers"
    if advice is None:
        advice = _MATH if str(call.dtype).startswith("float") else "the operators that docs/portable-subset.md lists"
    verb = "" if advice.startswith("drop") else "use "
    return f"T.{short_name(call)} is not portable: {verb}{advice}"


def _is_float(expression: Any) -> bool:
    return "float" in str(expression.dtype)


def _bits(dtype: str) -> str:
    return "".join(filter(str.isdigit, dtype)) or "8"


def refused_dtype(dtype: str, what: str) -> str | None:
    """The message for an element type outside the subset."""
    if dtype in DTYPES:
        return None
    if "float" in dtype:
        carry = {"64": "float32", "16": "uint16 bits", "8": "uint8 bits"}.get(_bits(dtype.split("_")[0]), "bits")
        return f"{what} of {dtype} is not portable: carry {carry} and convert with numerics and formats"
    return f"{what} of {dtype} is not portable: use one of {', '.join(sorted(DTYPES))}"


def check_expression(node: Any, report: Report) -> bool:
    """Report what is wrong with one node, whatever its operands are; false if these need no look."""
    if not isinstance(node, _NODES):
        report(f"{type(node).__name__} is not portable: use scalar expressions inside T.Parallel")
        return False
    if isinstance(node, tirx.Call) and called(node) not in _CALLS:
        report(refused_call(node))
        return False
    message = refused_dtype(str(node.dtype), "arithmetic")
    if message is not None:
        if not isinstance(node, (tirx.BufferLoad, tirx.Var)):  # a buffer is reported where it is declared
            report(message)
        return True
    if isinstance(node, tirx.Cast):
        if is_fp32(node.value) and not is_fp32(node):
            report(f"cast from float32 to {node.dtype} is not portable (overflow differs): use {_ROUNDING}")
    elif isinstance(node, (tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod)) and _is_float(node):
        report("fp32 division is not portable: use numerics.recip and a multiplication")
    elif isinstance(node, (tirx.Min, tirx.Max)) and _is_float(node):
        name = type(node).__name__.lower()
        report(f"fp32 T.{name} is not portable (NaN and -0 differ): use compare and select, T.if_then_else")
    return True
