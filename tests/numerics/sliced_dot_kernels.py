"""Kernels over the sliced dot; TileLang reads their source, so they live in a file."""

import tilelang.language as T

from kernelforge.numerics.tile.sliced_dot import SLICES, chunk_length, cut, sliced_dot, sliced_dot_accumulate

STORAGE = {"bfloat16": "uint16", "float32": "float32"}


def whole_rows(M, N, K, dtype):
    """out = A B^T, both cut in the kernel, in one chunk."""

    @T.prim_func
    def main(
        A: T.Tensor((M, K), STORAGE[dtype]), B: T.Tensor((N, K), STORAGE[dtype]), out: T.Tensor((M, N), "float32")
    ):
        with T.Kernel(1, threads=128) as bx:
            a_tile = T.alloc_shared((M, K), STORAGE[dtype])
            b_tile = T.alloc_shared((N, K), STORAGE[dtype])
            a = [T.alloc_shared((M, K), "int8") for _ in range(SLICES[dtype])]
            b = [T.alloc_shared((N, K), "int8") for _ in range(SLICES[dtype])]
            a_exponent = T.alloc_shared((M,), "int32")
            b_exponent = T.alloc_shared((N,), "int32")
            result = T.alloc_shared((M, N), "float32")
            T.copy(A[bx * M, 0], a_tile)
            T.copy(B[bx * N, 0], b_tile)
            cut(a_tile, dtype, a, a_exponent)
            cut(b_tile, dtype, b, b_exponent)
            sliced_dot(a, a_exponent, b, b_exponent, result)
            T.copy(result, out[bx * M, 0])

    return main


def by_chunks(M, N, K, x_dtype, slices=None, ranks=None):
    """out = X W^T with float32 weights, chunk by chunk; ``slices`` of X and ``ranks`` as ``sliced_dot_accumulate``."""
    length = chunk_length(K, x_dtype, "float32")

    @T.prim_func
    def main(X: T.Tensor((M, K), STORAGE[x_dtype]), W: T.Tensor((N, K), "float32"), out: T.Tensor((M, N), "float32")):
        with T.Kernel(1, threads=128) as bx:
            x_tile = T.alloc_shared((M, length), STORAGE[x_dtype])
            w_tile = T.alloc_shared((N, length), "float32")
            w = [T.alloc_shared((N, length), "int8") for _ in range(3)]
            w_exponent = T.alloc_shared((N,), "int32")
            acc = T.alloc_shared((M, N), "float32")
            for i, j in T.Parallel(M, N):
                acc[i, j] = T.float32(0)
            for chunk in T.serial(K // length):
                T.copy(X[bx * M, chunk * length], x_tile)
                T.copy(W[bx * N, chunk * length], w_tile)
                cut(w_tile, "float32", w, w_exponent)
                sliced_dot_accumulate(acc, x_tile, x_dtype, w, w_exponent, N, slices, ranks)
            T.copy(acc, out[bx * M, 0])

    return main
