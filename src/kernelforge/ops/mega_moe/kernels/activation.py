"""Clamped SwiGLU of one element, as a TileLang macro."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ....formats.tile.integer import read_bits
from ....numerics.tile.elementary import silu


def bits_of(x: Any) -> Any:
    """Bits of a float32."""
    return T.reinterpret(x, "int32")


@T.macro
def read(x: Any) -> Any:
    """A float32 as the contract reads it: magnitudes below 2^-50 are +0."""
    bits = T.alloc_var("int32")
    bits = bits_of(x)
    value = T.alloc_var("float32")
    value = T.reinterpret(read_bits(bits), "float32")
    return value


@T.macro
def swiglu(gate: Any, up: Any, weight: Any, limit: float) -> Any:
    """(silu(min(gate, limit)) * clamp(up, -limit, limit)) * weight; every operand is read (2^-50) before it is used."""
    g = T.alloc_var("float32")
    u = T.alloc_var("float32")
    g = gate
    g = T.if_then_else(g > T.float32(limit), T.float32(limit), g)
    u = up
    u = T.if_then_else(u > T.float32(limit), T.float32(limit), u)
    u = T.if_then_else(u < T.float32(-limit), T.float32(-limit), u)
    g = silu(g)
    g = read(g) * read(u)
    return read(g) * read(weight)
