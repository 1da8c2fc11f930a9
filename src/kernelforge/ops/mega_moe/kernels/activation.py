"""Clamped SwiGLU of one element in steps, as TileLang macros.

Each step is a loop of its own in a kernel. In one body GCC makes no vectors of them: it carries the constants of one
step's branches into the conditions of the next.
"""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ....numerics.tile.elementary import silu
from ....numerics.tile.scalar import read

__all__ = ["clamped", "silu", "weighed"]


@T.macro
def clamped(gate: Any, limit: float) -> Any:
    """The gate, at most ``limit``; a NaN passes. Its :func:`silu` is the next step."""
    g = T.alloc_var("float32")
    g = T.if_then_else(gate > T.float32(limit), T.float32(limit), gate)
    return g


@T.macro
def weighed(gate: Any, up: Any, weight: Any, limit: float) -> Any:
    """(gate * clamp(up, -limit, limit)) * weight for a gate after silu; every operand is read (2^-50) before it is
    used."""
    g = T.alloc_var("float32")
    u = T.alloc_var("float32")
    u = up
    u = T.if_then_else(u > T.float32(limit), T.float32(limit), u)
    u = T.if_then_else(u < T.float32(-limit), T.float32(-limit), u)
    g = read(gate) * read(u)
    return read(g) * read(weight)
