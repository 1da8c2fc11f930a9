"""Rounding of fp32 sums to a kernel's output type (contract C1, C8) as a TileLang macro."""

from __future__ import annotations

import tilelang.language as T

from ...formats.tile import bf16
from ...formats.tile.integer import canonical_bits

__all__ = ["canonical_bits", "round_output"]


@T.macro
def round_output(acc, result, out_dtype):
    """result[i, j] = acc[i, j] rounded to ``out_dtype``; 16-bit floats as their bits."""
    for i, j in T.Parallel(acc.shape[0], acc.shape[1]):
        bits = T.alloc_var("int32")
        bits = T.reinterpret(acc[i, j], "int32")
        if out_dtype == "float32":
            result[i, j] = T.reinterpret(canonical_bits(bits), "float32")
        elif out_dtype == "bfloat16":
            result[i, j] = T.cast(bf16.encode(bits), "uint16")
        else:
            result[i, j] = T.cast(bf16.encode_binary16(bits), "uint16")
