"""Products of BF16 matrices by exact integer dots, and the grouped output projection: these functions define the bits.

Matrices are float32 arrays of BF16 values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...formats.mx import flush as read
from ...numerics.window import CHUNK, chunk_length, sliced_dot, window

Float32 = NDArray[np.float32]


def _chunk(a: Float32, b: Float32) -> Float32:
    """The dot of rows of one chunk; NaN for a row with an infinity or a NaN."""
    usable_a, usable_b = np.isfinite(a).all(-1, keepdims=True), np.isfinite(b).all(-1, keepdims=True)
    found = sliced_dot(window(np.where(usable_a, a, 0)), window(np.where(usable_b, b, 0)))
    return np.where(usable_a & usable_b.T, found, np.float32(np.nan))


def _dot(a: Float32, b: Float32, step: int) -> Float32:
    """a @ b.T over chunks of ``step``, ascending from +0, rounded to BF16."""
    total = np.zeros((len(a), len(b)), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, a.shape[1], step):
            total = total + _chunk(read(a[:, start : start + step]), read(b[:, start : start + step]))
    return bf16.decode(bf16.encode(total))


def sliced_gemm(a: Float32, w: Float32, groups: int) -> Float32:
    """[M, groups * K] and [groups * N, K] to [M, groups * N], each group on its own."""
    K, N = w.shape[1], len(w) // groups
    parts = [_dot(a[:, g * K : (g + 1) * K], w[g * N : (g + 1) * N], chunk_length(K)) for g in range(groups)]
    return np.concatenate(parts, axis=1)


def sliced_gemm_over_tokens(a: Float32, b: Float32, groups: int) -> Float32:
    """[tokens, groups * N] and [tokens, groups * K] to [groups * N, K], summed over tokens in chunks of 128."""
    N, K = a.shape[1] // groups, b.shape[1] // groups
    parts = [
        _dot(
            np.ascontiguousarray(a[:, g * N : (g + 1) * N].T), np.ascontiguousarray(b[:, g * K : (g + 1) * K].T), CHUNK
        )
        for g in range(groups)
    ]
    return np.concatenate(parts)


def grouped_output_projection(o: Float32, wa: Float32, wb: Float32) -> tuple[Float32, Float32]:
    """The ranks [M, groups * rank] between the products, and the result [M, hidden].

    Args:
        o: [M, groups * K]; wa: [groups, rank, K]; wb: [hidden, groups * rank].
    """
    ranks = sliced_gemm(o, wa.reshape(-1, wa.shape[2]), len(wa))
    return ranks, sliced_gemm(ranks, wb, 1)
