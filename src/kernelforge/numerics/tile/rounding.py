"""Rounding of fp32 sums to a kernel's output type (contract C1, C8) as a TileLang macro."""

from __future__ import annotations

import tilelang.language as T

from ...formats.tile import bf16
from ...formats.tile.integer import canonical_bits

__all__ = ["canonical_bits", "round_output", "store_rounded"]


def _rounded(bits, out_dtype):
    """What is stored of a float32, given and returned as its bits; float32 is returned as itself."""
    if out_dtype == "float32":
        return T.reinterpret(canonical_bits(bits), "float32")
    return T.cast(bf16.encode(bits) if out_dtype == "bfloat16" else bf16.encode_binary16(bits), "uint16")


@T.macro
def round_output(acc, result, out_dtype):
    """result[i, j] = acc[i, j] rounded to ``out_dtype``; 16-bit floats as their bits."""
    for i, j in T.Parallel(acc.shape[0], acc.shape[1]):
        bits = T.alloc_var("int32")
        bits = T.reinterpret(acc[i, j], "int32")
        result[i, j] = _rounded(bits, out_dtype)


@T.macro
def store_rounded(acc, out, row, column, rows, out_dtype):
    """out[row + i, column + j] = acc[i, j] rounded to ``out_dtype``, for the leading ``rows`` rows of ``acc`` and the
    columns that ``out`` has."""
    for i, j in T.Parallel(acc.shape[0], acc.shape[1]):
        if i < rows and column + j < out.shape[1]:
            bits = T.alloc_var("int32")
            bits = T.reinterpret(acc[i, j], "int32")
            out[row + i, column + j] = _rounded(bits, out_dtype)
