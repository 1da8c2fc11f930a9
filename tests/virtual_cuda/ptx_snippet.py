"""Runs a few PTX instructions on one warp: every input is one value per lane, every output too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from kernelforge_cuda._virtual import Program

from kernelforge_cuda.virtual.launch import Schedule, run

_CLASS = {1: "b8", 2: "b16", 4: "b32", 8: "b64"}
_REGISTER = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}

HEADER = ".version 9.0\n.target {target}\n.address_size 64\n{module}\n"


def entry(body: str, parameters: int, *, target: str = "sm_90a", module: str = "", registers: str = "") -> str:
    """A kernel `k` with pointer parameters p0, p1, ... already in %a0, %a1, ... (generic addresses)."""
    names = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    loads = "\n".join(f"ld.param.u64 %a{i}, [p{i}];" for i in range(parameters))
    return (
        HEADER.format(target=target, module=module)
        + f".visible .entry k({names})\n{{\n.reg .b64 %a<{max(parameters, 1)}>;\n"
        + ".reg .b32 %tid; .reg .b64 %t64, %pp; .reg .pred %p<16>; .reg .b16 %h<64>;\n"
        + ".reg .b32 %r<256>; .reg .f32 %f<256>; .reg .b64 %d<64>;\n"
        + f"{registers}\nmov.u32 %tid, %tid.x;\ncvt.u64.u32 %t64, %tid;\n{loads}\n{body}\nret;\n}}\n"
    )


def lanes(
    body: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, Any],
    *,
    target: str = "sm_90a",
    module: str = "",
    rounded: bool = False,
) -> dict[str, np.ndarray]:
    """Values of `outputs` ({register: dtype}) after `body`; `inputs` are loaded into registers of their width first."""
    names = [*inputs, *outputs]
    results = {name: np.zeros(32, dtype) for name, dtype in outputs.items()}
    arrays: list[Any] = [np.ascontiguousarray(values) for values in inputs.values()] + list(results.values())
    declarations, before, after = [], [], []
    for position, (name, array) in enumerate(zip(names, arrays, strict=True)):
        size = array.dtype.itemsize
        declarations.append(f".reg .{_REGISTER[size]} {name};")
        address = f"mad.lo.u64 %pp, %t64, {size}, %a{position};"
        if name in inputs:
            before.append(f"{address} ld.global.{_CLASS[size]} {name}, [%pp];")
        else:
            after.append(f"{address} st.global.{_CLASS[size]} [%pp], {name};")
    text = entry(
        "\n".join([*before, body, *after]),
        len(names),
        target=target,
        module=module,
        registers="\n".join(declarations),
    )
    run(Program(text, rounded), "k", [1], [32], arrays, schedule=Schedule(), check=True, threads=1)
    return results


def one(body: str, result: Any, *operands: np.ndarray, target: str = "sm_90a") -> np.ndarray:
    """Result register %z of `body` over operand registers %x0, %x1, ..."""
    return lanes(body, {f"%x{i}": v for i, v in enumerate(operands)}, {"%z": result}, target=target)["%z"]


def words(rng: np.random.Generator, dtype: Any = np.uint32) -> np.ndarray:
    """32 random values with the edge cases of their width among them."""
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, 32, dtype=dtype, endpoint=True)
    values[:6] = [0, 1, info.max, info.min, info.max - 1, info.max // 2 + 1]
    return values


def floats(rng: np.random.Generator) -> np.ndarray:
    """32 floats of every kind: normal, subnormal, zeros, infinities, NaN, huge and tiny."""
    values = rng.integers(0, 2**32, 32, dtype=np.uint64).astype(np.uint32)
    values[:12] = [
        0,
        0x80000000,
        1,
        0x80000001,
        0x007FFFFF,
        0x00800000,
        0x7F7FFFFF,
        0x7F800000,
        0xFF800000,
        0x7FC00001,
        0x3F800000,
        0xBF800001,
    ]
    return values.view(np.float32)


def same_floats(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, where every NaN is the device's NaN."""
    bits = expected.astype(np.float32).view(np.uint32).copy()
    bits[np.isnan(expected)] = 0x7FFFFFFF
    np.testing.assert_array_equal(actual.view(np.uint32), bits)
