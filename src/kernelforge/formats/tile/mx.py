"""Quantization of a tile to MX blocks (contract C8) as TileLang macros; elements come as float32 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tilelang.language as T

from . import e2m1, e4m3, e8m0
from .integer import Expression

BLOCK = 32
"""Elements under one E8M0 scale (OCP MX 1.0, section 5.2)."""


@T.macro
def block_scales(
    x: Any, scale: Any, bits_of: Callable[[Any], Expression], element: str, scale_rule: str, rows: Any
) -> None:
    """scale[i, b] = the E8M0 byte of block b of row i, for rows i < ``rows``.

    Args:
        x: [bm, bk] tile.
        scale: uint8 [bm, bk / 32].
        bits_of: float32 bits of an element as ``x`` stores it.
        element: "e2m1" | "e4m3".
        scale_rule: "ceil" | "floor".
    """
    for i, b in T.Parallel(scale.shape[0], scale.shape[1]):
        if i < rows:
            amax = T.alloc_var("int32")
            amax = 0
            for q in T.serial(BLOCK):
                amax = T.max(amax, e8m0.magnitude_bits(bits_of(x[i, b * BLOCK + q])))
            scale[i, b] = T.cast(e8m0.scale_byte(amax, element, scale_rule), "uint8")


@T.macro
def element_code(bits: Expression, byte: Expression, element: str) -> Any:
    """Code of the float32 with these bits under a scale byte; 0 in a block that has no number for a scale."""
    code = T.alloc_var("int32")
    if element == "e2m1":
        code = e2m1.encode(bits, e8m0.scale_exponent(byte))
    else:
        code = e4m3.encode(bits, e8m0.scale_exponent(byte))
    return T.if_then_else(byte == e8m0.NAN, 0, code)
