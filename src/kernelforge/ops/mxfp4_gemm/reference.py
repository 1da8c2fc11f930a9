"""MXFP4 GEMM: the reference, which defines the bits.

Arrays are NumPy; bfloat16 travels as uint16 bits, E4M3 and E8M0 as uint8. Every kernel is held to these results bit for
bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...formats.mx import dequantize_mxfp4, dequantize_mxfp8, quantize_mxfp4, quantize_mxfp8
from ...numerics.block_accumulate import A_FORMATS, mx_block_accumulate

__all__ = [
    "A_FORMATS",
    "dequantize_mxfp4",
    "dequantize_mxfp8",
    "grouped_mxfp4_gemm",
    "mxfp4_gemm",
    "quantize_mxfp4",
    "quantize_mxfp8",
    "round_output",
]


def round_output(acc: NDArray[np.float32], out_dtype: str) -> NDArray[Any]:
    """float32 sums as an op writes them: ``float32``; ``bfloat16`` as uint16 bits; ``float16``. One NaN, no -0."""
    acc = bf16.canonical(acc)
    if out_dtype == "float32":
        return acc
    if out_dtype == "bfloat16":
        return bf16.encode(acc)
    if out_dtype == "float16":
        return bf16.encode_binary16(acc).view(np.float16)
    raise ValueError(f"out_dtype is {out_dtype!r}; 'float32', 'bfloat16' or 'float16' is wanted")


def mxfp4_gemm(
    a: NDArray[Any],
    a_scale: NDArray[Any] | None,
    w: NDArray[np.uint8],
    w_scale: NDArray[np.uint8],
    a_format: str,
    out_dtype: str = "bfloat16",
) -> NDArray[Any]:
    """out[M, N] = A[M, K] W[N, K]^T.

    Args:
        a, a_scale, a_format: activations as in :func:`kernelforge.numerics.block_accumulate.activations`.
        w: packed E2M1 uint8 [N, K/2], even k in the low nibble.
        w_scale: E8M0 uint8 [N, K/32].
        out_dtype: ``"float32"``, ``"bfloat16"`` (uint16 bits) or ``"float16"``.
    """
    acc = np.zeros((a.shape[0], w.shape[0]), np.float32)
    return round_output(mx_block_accumulate(acc, a, a_scale, w, w_scale, a_format), out_dtype)


def grouped_mxfp4_gemm(
    a: NDArray[Any],
    a_scale: NDArray[Any] | None,
    w: NDArray[np.uint8],
    w_scale: NDArray[np.uint8],
    group_offsets: NDArray[np.int32],
    a_format: str,
    out_dtype: str = "bfloat16",
) -> NDArray[Any]:
    """Rows ``group_offsets[e] : group_offsets[e + 1]`` of A times expert e's weights.

    Args:
        w: packed E2M1 uint8 [E, N, K/2]; ``w_scale`` uint8 [E, N, K/32].
        group_offsets: int32 [E + 1], ascending from 0 to M; equal neighbours are an expert without tokens.
    """
    offsets = [int(offset) for offset in group_offsets]
    if len(offsets) != w.shape[0] + 1 or offsets[0] != 0 or offsets[-1] != a.shape[0] or offsets != sorted(offsets):
        raise ValueError(
            f"group_offsets is {offsets}; {w.shape[0] + 1} ascending rows from 0 to {a.shape[0]} are wanted"
        )
    parts = []
    for expert in range(w.shape[0]):
        rows = slice(offsets[expert], offsets[expert + 1])
        scale = None if a_scale is None else a_scale[rows]
        parts.append(mxfp4_gemm(a[rows], scale, w[expert], w_scale[expert], a_format, out_dtype))
    return np.concatenate(parts)
