"""What a launch needs beside the PTX, as a plain JSON-able dict, out of a lowered TileLang artifact."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

# CUtensorMapDataType -> bytes and whether it is a float (an out-of-bounds fill with NaN needs one).
_TENSOR_MAP_TYPES: dict[int, tuple[int, bool]] = {
    0: (1, False),
    1: (2, False),
    2: (4, False),
    3: (4, False),
    4: (8, False),
    5: (8, False),
    6: (2, True),
    7: (4, True),
    8: (8, True),
    9: (2, True),
    10: (4, True),
    11: (4, True),
    12: (4, True),
}

_OPERATORS = {"Add": "+", "Sub": "-", "Mul": "*", "FloorDiv": "//", "Div": "//", "FloorMod": "%", "Mod": "%"}


def _expression(value: Any) -> int | str:
    """An integer, or the text of an integer expression over the kernel's scalar parameters."""
    if isinstance(value, int):
        return value
    kind = type(value).__name__
    if kind == "IntImm":
        return int(value.value)
    if kind == "Cast":
        return _expression(value.value)
    if kind in ("Var", "SizeVar"):
        return str(value.name)
    if kind in _OPERATORS:
        return f"({_expression(value.a)} {_OPERATORS[kind]} {_expression(value.b)})"
    if kind in ("Min", "Max"):
        return f"{kind.lower()}({_expression(value.a)}, {_expression(value.b)})"
    raise ValueError(f"launch size {value} ({kind}) is not an integer expression of the kernel's scalars")


def evaluate(expression: int | str, scalars: Mapping[str, int]) -> int:
    """Value of what ``_expression`` made. Raises ValueError for a name that is not a scalar of the kernel."""
    if isinstance(expression, int):
        return expression

    def visit(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            if node.id not in scalars:
                raise ValueError(f"launch size '{expression}' needs the scalar '{node.id}', which was not given")
            return scalars[node.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            values = [visit(argument) for argument in node.args]
            return min(values) if node.func.id == "min" else max(values)
        if isinstance(node, ast.BinOp):
            left, right = visit(node.left), visit(node.right)
            match node.op:
                case ast.Add():
                    return left + right
                case ast.Sub():
                    return left - right
                case ast.Mult():
                    return left * right
                case ast.FloorDiv():
                    return left // right
                case ast.Mod():
                    return left % right
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -visit(node.operand)
        raise ValueError(f"launch size '{expression}' is not an integer expression")

    return visit(ast.parse(expression, mode="eval").body)


def _tensor_map(arguments: Any) -> dict[str, Any]:
    """One value of ``tma_descriptor_args``: function, descriptor, dtype, rank, buffer, dims, strides, box, ..."""
    items = list(arguments)
    if str(getattr(items[0], "value", items[0])) != "__tvm_tensormap_create_tiled":
        raise ValueError(f"tensor map made by {items[0]} is not supported; only tiled maps are")
    rank = int(items[3])
    numbers = [_expression(item) for item in items[5:]]
    return {
        "dtype": int(items[2]),
        "rank": rank,
        "buffer": str(items[4].name),
        "dims": numbers[:rank],
        "strides": numbers[rank : 2 * rank],
        "box": numbers[2 * rank : 3 * rank],
        "element_strides": numbers[3 * rank : 4 * rank],
        "interleave": numbers[4 * rank],
        "swizzle": numbers[4 * rank + 1],
        "l2": numbers[4 * rank + 2],
        "oob": numbers[4 * rank + 3],
    }


def launch_info(artifact: Any) -> dict[str, Any]:
    """Launch facts of a lowered TileLang artifact (``tilelang.lower`` result) with one device kernel.

    Returns:
        A JSON-able dict: ``entry`` (kernel name), ``grid`` and ``block`` (three sizes each), ``shared_bytes``
        (dynamic), ``params`` (names in order), and ``tma`` ({parameter: dtype, rank, buffer, dims, strides (of the
        innermost dimension: 1 or its bytes; of the others: bytes), box, element_strides, interleave, swizzle, l2,
        oob}). Sizes that depend on dynamic shapes are texts for ``evaluate``.

    Raises:
        ValueError: the artifact holds another number of kernels, or a size that is no integer expression.
    """
    functions = list(artifact.device_mod.functions.items())
    if len(functions) != 1:
        raise ValueError(f"the artifact holds {len(functions)} device kernels; exactly one is wanted")
    function = functions[0][1]
    extent = {str(k): _expression(v) for k, v in dict(function.attrs.get("thread_extent", {})).items()}
    tma: dict[str, Any] = {}
    for _, host in artifact.host_mod.functions.items():
        for key, value in dict(host.attrs.get("tma_descriptor_args", {})).items():
            tma[str(getattr(key, "name", key))] = _tensor_map(value)
    return {
        "entry": str(function.attrs["global_symbol"]),
        "grid": [extent.get(f"blockIdx.{axis}", 1) for axis in "xyz"],
        "block": [extent.get(f"threadIdx.{axis}", 1) for axis in "xyz"],
        "shared_bytes": _expression(function.attrs.get("dyn_shared_memory_buf", 0)),
        "params": [str(parameter.name) for parameter in function.params],
        "tma": tma,
    }


def encode_tensor_map(info: Mapping[str, Any], address: int, scalars: Mapping[str, int]) -> dict[str, Any]:
    """The dict that ``_virtual.Program.launch`` takes for a tensor map over the buffer at ``address``.

    Raises:
        ValueError: an interleaved map or an unknown element type.
    """
    if info["interleave"] != 0:
        raise ValueError(f"tensor map of '{info['buffer']}': interleave {info['interleave']} is not supported")
    if info["dtype"] not in _TENSOR_MAP_TYPES:
        raise ValueError(f"tensor map of '{info['buffer']}': element type {info['dtype']} is not supported")
    element_bytes, is_float = _TENSOR_MAP_TYPES[info["dtype"]]
    strides = [evaluate(value, scalars) for value in info["strides"]]
    return {
        "address": address,
        "element_bytes": element_bytes,
        "dims": [evaluate(value, scalars) for value in info["dims"]],
        "strides": [element_bytes, *strides[1:]],
        "box": [evaluate(value, scalars) for value in info["box"]],
        "element_strides": [evaluate(value, scalars) for value in info["element_strides"]],
        "swizzle": int(info["swizzle"]),
        "nan_fill": bool(info["oob"]) and is_float,
    }
