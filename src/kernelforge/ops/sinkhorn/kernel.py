"""Sinkhorn normalization, forward and backward, as TileLang kernels."""

import tilelang.language as T

from ...numerics.tile.scalar import canonical
from . import tile


@T.macro
def _load(source, first, rows, m):
    """Transpose a tile of tokens; tokens beyond the end are zeros."""
    for t, k in T.Parallel(m.shape[1], m.shape[0]):
        m[k, t] = T.float32(0)
        if first + t < rows:
            m[k, t] = source[first + t, k]


def sinkhorn(n, iters, eps, block_T, threads):
    """result[t] = sinkhorn(logits[t]) of n x n matrices.

    Args:
        n: 2 to 8.
        iters, eps: as in the reference.
        block_T, threads: schedule; never changes a bit.
    """
    tokens = T.dynamic("tokens")

    @T.prim_func
    def main(logits: T.Tensor((tokens, n * n), "float32"), result: T.Tensor((tokens, n * n), "float32")):
        with T.Kernel(T.ceildiv(tokens, block_T), threads=threads) as bx:
            m = T.alloc_shared((n * n, block_T), "float32")
            _load(logits, bx * block_T, tokens, m)
            tile.sinkhorn(m, n, iters, eps)
            for t, k in T.Parallel(block_T, n * n):
                if bx * block_T + t < tokens:
                    result[bx * block_T + t, k] = canonical(m[k, t])

    return main


def sinkhorn_backward(n, iters, eps, block_T, threads):
    """logits_grad[t] = the gradient of the logits, from that of :func:`sinkhorn`'s result; iterates are recomputed."""
    tokens = T.dynamic("tokens")

    @T.prim_func
    def main(
        grad: T.Tensor((tokens, n * n), "float32"),
        logits: T.Tensor((tokens, n * n), "float32"),
        logits_grad: T.Tensor((tokens, n * n), "float32"),
    ):
        with T.Kernel(T.ceildiv(tokens, block_T), threads=threads) as bx:
            g = T.alloc_shared((n * n, block_T), "float32")
            m = T.alloc_shared((n * n, block_T), "float32")
            _load(grad, bx * block_T, tokens, g)
            _load(logits, bx * block_T, tokens, m)
            tile.sinkhorn_backward(g, m, n, iters, eps)
            for t, k in T.Parallel(block_T, n * n):
                if bx * block_T + t < tokens:
                    logits_grad[bx * block_T + t, k] = canonical(g[k, t])

    return main
