"""Products of BF16 matrices by exact integer dots, and the grouped output projection: these functions define the bits.

Matrices are float32 arrays of BF16 values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...numerics.window import CHUNK, chunk_length
from ..sliced_gemm.reference import product

Float32 = NDArray[np.float32]


def _dot(a: Float32, b: Float32, step: int) -> Float32:
    """a @ b.T over chunks of ``step``, rounded to BF16."""
    return bf16.decode(bf16.encode(product(a, b, step=step)))


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
