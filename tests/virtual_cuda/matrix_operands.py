"""Operands of matrix instructions by type, and the ISA's tables of where a warp's registers have them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numbered import numbered


def fragment_a(lane: int, i: int, size: int) -> tuple[int, int]:
    """(row, k) of element i of an A fragment (PTX ISA, mma.m16n8k16 for 16-bit, m16n8k32 for 8-bit types)."""
    group, thread = lane >> 2, lane % 4
    if size == 2:
        row = group if i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    row = group if i < 4 or 8 <= i < 12 else group + 8
    return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)


def fragment_b(lane: int, i: int, size: int) -> tuple[int, int]:
    """(k, column) of element i of a B fragment."""
    group, thread = lane >> 2, lane % 4
    if size == 2:
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group


def fragment_c(lane: int, i: int) -> tuple[int, int]:
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)


TYPES: dict[str, tuple[Any, np.ndarray]] = {
    "s8": (np.int8, np.arange(-128, 128)),
    "u8": (np.uint8, np.arange(256)),
    "f16": (np.float16, np.arange(-40, 41)),
    "bf16": (ml_dtypes.bfloat16, np.arange(-100, 101)),
    "e4m3": (ml_dtypes.float8_e4m3fn, np.arange(-12, 13)),
    "e5m2": (ml_dtypes.float8_e5m2, np.arange(-6, 7)),
}
"""By PTX type: what NumPy calls it, and integers that are exact in it and in every sum here."""


def operands(
    a_type: str, a_shape: tuple[int, int], b_type: str, b_shape: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of operands which, taken together, tell every place of A and every place of B from the others."""
    (a_kind, a_values), (b_kind, b_values) = TYPES[a_type], TYPES[b_type]
    a, b = numbered(a_shape, a_values, a_kind), numbered(b_shape, b_values, b_kind)
    return [(a[i % len(a)], b[i % len(b)]) for i in range(max(len(a), len(b)))]
