"""The headers that generated code includes."""

from __future__ import annotations

import re

OWN, MX_BLOCK = "kernelforge_cuda.h", "mx_block.h"

# TileLang includes these in every kernel, or in every one that multiplies or copies asynchronously.
_USUAL = frozenset(
    "tl_templates/cuda/" + name
    for name in (
        "copy.h",
        "cuda_bf16_fallbacks.cuh",
        "debug.h",
        "instruction/mma.h",
        "ldsm.h",
        "reduce.h",
        "scan.h",
        "threadblock_swizzle.h",
    )
) | {"cuda.h", "math_constants.h"}
_NAMES = frozenset(
    ("tl", name)
    for name in (
        "broadcast",
        "__sync_thread_partial",
        "cp_async_gs",
        "cp_async_gs_conditional",
        "cp_async_commit",
        "cp_async_wait",
        "ptx_ldmatrix_x2",
        "ptx_ldmatrix_x4",
        "mma_sync<tl::DataType::kInt8, tl::DataType::kInt8, tl::DataType::kInt32, 16, 8, 32, false, true>",
    )
)
_BUILTINS = frozenset(
    ("if", "for", "while", "__launch_bounds__", "__align__", "__syncthreads", "__fmul_rn", "max", "min")
)
"""Keywords and functions of CUDA C++ itself; its ``make_`` functions take at most four elements."""
_CALL = re.compile(r"(?<![\w:])([A-Za-z_]\w*)\(")
_MAKE = re.compile(r"make_u?(?:char|short|int|float|longlong)[1-4]")
_KERNEL = re.compile(r"^extern \"C\" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(", re.MULTILINE)
_INCLUDE = re.compile(r"^#include <([^>]+)>\n", re.MULTILINE)
_PROLOGUE = re.compile(r"(?:#[^\n]*\n|\n)+(?=extern \"C\" __global__)")
_QUALIFIED = re.compile(r"(?<!\w)(\w+)::(mma_sync<[^>]*>|\w+)")
_FORMATS = re.compile(r"\b(?:__)?(?:nv_)?(?:half|bfloat16|bfloat162|float_\w+|fp[468]_e\w+|tfloat32|u?int4b)(?:_t)?\b")
"""Types that TileLang's templates define."""


def with_own_headers(source: str) -> str:
    """Include ``kernelforge_cuda.h`` in place of TileLang's templates in a kernel that needs no more of them."""
    prologue = _PROLOGUE.match(source)
    if prologue is not None and "kf::" in source:
        source = f"{prologue[0]}#include <{MX_BLOCK}>\n\n{source[prologue.end() :]}"
    if prologue is None or not set(_INCLUDE.findall(prologue[0])) <= _USUAL:
        return source
    body = source[prologue.end() :]
    used = {name for name in _QUALIFIED.findall(body) if name[0] != "kf"}
    if not used <= _NAMES or _FORMATS.search(body) or not _calls_builtins(body):
        return source
    return f"#include <{OWN}>\n\n{body}"


def _calls_builtins(body: str) -> bool:
    """Whether every function that a kernel calls by a plain name is CUDA's, or is in ``kernelforge_cuda.h``."""
    kernels = set(_KERNEL.findall(body))
    for call in _CALL.finditer(body):
        name = call[1]
        if _MAKE.fullmatch(name):
            if (elements := _arguments(body, call.end())) > 4 and (name, elements) != ("make_uint4", 8):
                return False
        elif name not in _BUILTINS and name not in kernels:
            return False
    return True


def _arguments(text: str, start: int) -> int:
    """How many arguments the call has whose parenthesis opens before ``start``."""
    depth, commas = 1, 0
    for character in text[start:]:
        depth += (character in "([{") - (character in ")]}")
        commas += character == "," and depth == 1
        if depth == 0:
            break
    return commas + 1
