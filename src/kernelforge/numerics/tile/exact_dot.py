"""The one matrix primitive (contract C2): an integer dot whose exact value fits, as a TileLang macro."""

from __future__ import annotations

import tilelang.language as T

from ...formats.tile import window as windows
from .composite import composite


@T.macro
def exact_dot(a, b, out):
    """out[i, j] = sum over k of a[i, k] * b[j, k], exactly.

    Any engine that yields the value will do: int8 dots on the two slices of a window, or one floating-point dot where
    every partial sum fits its accumulator.

    Args:
        a: [m, k] int8, or int16 windows in [-32639, 32639] (contract C4).
        b: [n, k] int8.
        out: int32 fragment [m, n]; the caller answers for the bound (``kernelforge.proofs``).
    """
    with composite("exact_dot", a, b, out):
        if str(a.dtype) == "int8":
            T.gemm(a, b, out, transpose_B=True, clear_accum=True)
        else:
            rows, depth = a.shape
            high = T.alloc_shared((rows, depth), "int8")
            low = T.alloc_shared((rows, depth), "int8")
            out_low = T.alloc_fragment(out.shape, "int32")
            for i, k in T.Parallel(rows, depth):
                value = T.alloc_var("int32")
                value = T.cast(a[i, k], "int32")
                high[i, k] = T.cast(windows.high(value), "int8")
                low[i, k] = T.cast(windows.low(value), "int8")
            T.gemm(high, b, out, transpose_B=True, clear_accum=True)
            T.gemm(low, b, out_low, transpose_B=True, clear_accum=True)
            for i, j in T.Parallel(out.shape[0], out.shape[1]):
                out[i, j] = out[i, j] * 256 + out_low[i, j]
