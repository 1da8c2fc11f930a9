"""Kernels over mixtures of streams; TileLang reads their source, so they live in a file."""

import tilelang.language as T

from kernelforge.numerics.tile.scalar import STORAGE, read
from kernelforge.numerics.tile.streams import collapse_streams, mix_streams


def mix(n, C, dtype, block_T, block_C, threads):
    """out[t, k] = gate[t, k] * y[t] + R(n) over j of m[t, j, k] * x[t, j]."""
    tokens = T.dynamic("tokens")

    @T.prim_func
    def main(
        y: T.Tensor((tokens, C), STORAGE[dtype]),
        x: T.Tensor((tokens, n * C), STORAGE[dtype]),
        gates: T.Tensor((tokens, n), "float32"),
        mixing: T.Tensor((tokens, n * n), "float32"),
        out: T.Tensor((tokens, n * C), STORAGE[dtype]),
    ):
        with T.Kernel(C // block_C, T.ceildiv(tokens, block_T), threads=threads) as (bx, by):
            gate = T.alloc_shared((block_T, n), "float32")
            m = T.alloc_shared((block_T, n * n), "float32")
            for i, k in T.Parallel(block_T, n):
                gate[i, k] = read(gates[T.min(by * block_T + i, tokens - 1), k])
            for i, k in T.Parallel(block_T, n * n):
                m[i, k] = read(mixing[T.min(by * block_T + i, tokens - 1), k])
            mix_streams(out, y, x, gate, m, by * block_T, bx * block_C, block_C, n, dtype)

    return main


def collapse(n, C, dtype, block_T, block_C, threads):
    """out[t] = R(n) over j of gate[t, j] * x[t, j]."""
    tokens = T.dynamic("tokens")

    @T.prim_func
    def main(
        x: T.Tensor((tokens, n * C), STORAGE[dtype]),
        gates: T.Tensor((tokens, n), "float32"),
        out: T.Tensor((tokens, C), STORAGE[dtype]),
    ):
        with T.Kernel(C // block_C, T.ceildiv(tokens, block_T), threads=threads) as (bx, by):
            gate = T.alloc_shared((n, block_T), "float32")
            for i, k in T.Parallel(block_T, n):
                gate[k, i] = read(gates[T.min(by * block_T + i, tokens - 1), k])
            collapse_streams(out, x, gate, by * block_T, bx * block_C, block_C, n, dtype)

    return main
