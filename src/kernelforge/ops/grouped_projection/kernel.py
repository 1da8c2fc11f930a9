"""Products of BF16 matrices by exact integer dots (contract C4), group by group, as TileLang kernels."""

import tilelang.language as T

from ...formats.tile import bf16
from ...numerics.tile.sliced_dot import chunk_length, cut, sliced_dot_accumulate
from ...numerics.window import CHUNK


@T.macro
def _store(acc, out, row, column, rows, columns):
    """Round a tile to BF16 bits; rows and columns beyond the ends are dropped."""
    for i, j in T.Parallel(acc.shape[0], acc.shape[1]):
        if (row + i < rows) & (j < columns):
            bits = T.alloc_var("int32")
            bits = T.reinterpret(acc[i, j], "int32")
            out[row + i, column + j] = T.cast(bf16.encode(bits), "uint16")


def sliced_gemm(groups, N, K, block_M, block_N, threads):
    """out[m, g * N + n] = the dot of a[m, g * K :] with w[g * N + n, :], over K.

    Args:
        groups, N, K: static; M is dynamic.
        block_M, block_N, threads: schedule; never changes a bit.
    """
    M = T.dynamic("M")
    length = chunk_length(K, "bfloat16", "bfloat16")

    @T.prim_func
    def main(
        a: T.Tensor((M, groups * K), "uint16"),
        w: T.Tensor((groups * N, K), "uint16"),
        out: T.Tensor((M, groups * N), "uint16"),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), groups, threads=threads) as (bx, by, bz):
            a_tile = T.alloc_shared((block_M, length), "uint16")
            w_tile = T.alloc_shared((block_N, length), "uint16")
            slices = [T.alloc_shared((block_N, length), "int8") for _ in range(2)]
            exponents = T.alloc_shared((block_N,), "int32")
            acc = T.alloc_shared((block_M, block_N), "float32")
            for i, j in T.Parallel(block_M, block_N):
                acc[i, j] = T.float32(0)
            for chunk in T.serial(T.ceildiv(K, length)):
                for i, k in T.Parallel(block_M, length):
                    a_tile[i, k] = T.cast(0, "uint16")
                    if chunk * length + k < K:
                        a_tile[i, k] = a[T.min(by * block_M + i, M - 1), bz * K + chunk * length + k]
                for j, k in T.Parallel(block_N, length):
                    w_tile[j, k] = T.cast(0, "uint16")
                    if chunk * length + k < K:
                        w_tile[j, k] = w[bz * N + T.min(bx * block_N + j, N - 1), chunk * length + k]
                cut(w_tile, "bfloat16", slices, exponents)
                sliced_dot_accumulate(acc, a_tile, "bfloat16", slices, exponents, block_N)
            _store(acc, out, by * block_M, bz * N + bx * block_N, M, N - bx * block_N)

    return main


def sliced_gemm_over_tokens(groups, N, K, block_M, block_N, threads):
    """out[g * N + n, k] = the dot of column g * N + n of a with column g * K + k of b, over tokens in chunks of 128.

    Args: as in :func:`sliced_gemm`; the number of tokens is dynamic.
    """
    tokens = T.dynamic("tokens")

    @T.prim_func
    def main(
        a: T.Tensor((tokens, groups * N), "uint16"),
        b: T.Tensor((tokens, groups * K), "uint16"),
        out: T.Tensor((groups * N, K), "uint16"),
    ):
        with T.Kernel(T.ceildiv(K, block_N), T.ceildiv(N, block_M), groups, threads=threads) as (bx, by, bz):
            a_tile = T.alloc_shared((block_M, CHUNK), "uint16")
            b_tile = T.alloc_shared((block_N, CHUNK), "uint16")
            slices = [T.alloc_shared((block_N, CHUNK), "int8") for _ in range(2)]
            exponents = T.alloc_shared((block_N,), "int32")
            acc = T.alloc_shared((block_M, block_N), "float32")
            for i, j in T.Parallel(block_M, block_N):
                acc[i, j] = T.float32(0)
            for chunk in T.serial(T.ceildiv(tokens, CHUNK)):
                for i, t in T.Parallel(block_M, CHUNK):
                    a_tile[i, t] = T.cast(0, "uint16")
                    if chunk * CHUNK + t < tokens:
                        a_tile[i, t] = a[chunk * CHUNK + t, bz * N + T.min(by * block_M + i, N - 1)]
                for j, t in T.Parallel(block_N, CHUNK):
                    b_tile[j, t] = T.cast(0, "uint16")
                    if chunk * CHUNK + t < tokens:
                        b_tile[j, t] = b[chunk * CHUNK + t, bz * K + T.min(bx * block_N + j, K - 1)]
                cut(b_tile, "bfloat16", slices, exponents)
                sliced_dot_accumulate(acc, a_tile, "bfloat16", slices, exponents, block_N)
            _store(acc, out, bz * N + by * block_M, bx * block_N, (bz + 1) * N, K - bx * block_N)

    return main
