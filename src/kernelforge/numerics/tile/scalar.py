"""Single elements as the contract reads and writes them (C1, C8), as TileLang macros."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...formats.tile import bf16
from ...formats.tile.integer import FLOAT32_INFINITY, MAGNITUDE, canonical_bits, read_bits

STORAGE = {"bfloat16": "uint16", "float32": "float32"}
"""Element types of tensors in kernels, by the dtype they stand for."""


def bits_of(x: Any) -> Any:
    """Bits of a float32."""
    return T.reinterpret(x, "int32")


def not_finite(x: Any) -> Any:
    """Whether a float32 is a NaN or an infinity."""
    return (bits_of(x) & MAGNITUDE) >= FLOAT32_INFINITY


@T.macro
def read(x: Any) -> Any:
    """A float32 as the contract reads it: magnitudes below 2^-50 are +0."""
    bits = T.alloc_var("int32")
    bits = bits_of(x)
    result = T.alloc_var("float32")
    result = T.reinterpret(read_bits(bits), "float32")
    return result


@T.macro
def canonical(x: Any) -> Any:
    """A float32 as an op writes it: NaN is 0x7FC00000, -0 is +0."""
    bits = T.alloc_var("int32")
    bits = bits_of(x)
    result = T.alloc_var("float32")
    result = T.reinterpret(canonical_bits(bits), "float32")
    return result


def value(stored: Any, dtype: str) -> Any:
    """A stored element as the contract reads it, float32."""
    if dtype == "bfloat16":
        return read(T.reinterpret(bf16.float32_bits(T.cast(stored, "int32")), "float32"))
    return read(stored)


@T.macro
def _bfloat16(x: Any) -> Any:
    """Bits of a float32 rounded to bfloat16."""
    bits = T.alloc_var("int32")
    bits = bits_of(x)
    code = T.alloc_var("uint16")
    code = T.cast(bf16.encode(bits), "uint16")
    return code


def stored(x: Any, dtype: str) -> Any:
    """A float32 as an op stores it in ``dtype``."""
    return _bfloat16(x) if dtype == "bfloat16" else canonical(x)
