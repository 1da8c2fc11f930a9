"""Clamped SwiGLU of one element, as a TileLang macro."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ....numerics.tile.elementary import silu
from ....numerics.tile.scalar import read


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
