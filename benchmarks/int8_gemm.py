"""The kernel that the virtual devices are measured with."""

from __future__ import annotations

from typing import Any

import tilelang.language as T


def int8_gemm(N: int, K: int) -> Any:
    """C[M, N] = sum over blocks of 128 of (A B^T) * (SA SB^T): two stages, an fp32 epilogue per block; M is dynamic."""
    M = T.dynamic("M")

    @T.prim_func
    def main(
        A: T.Tensor((M, K), "int8"),
        B: T.Tensor((N, K), "int8"),
        SA: T.Tensor((M, K // 128), "float32"),
        SB: T.Tensor((N, K // 128), "float32"),
        C: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(T.ceildiv(N, 128), T.ceildiv(M, 128), threads=128) as (bx, by):
            a = T.alloc_shared((128, 128), "int8")
            b = T.alloc_shared((128, 128), "int8")
            sa = T.alloc_shared((128, 1), "float32")
            sb = T.alloc_shared((128, 1), "float32")
            dot = T.alloc_fragment((128, 128), "int32")
            acc = T.alloc_fragment((128, 128), "float32")
            T.clear(acc)
            for k in T.Pipelined(K // 128, num_stages=2):
                T.copy(A[by * 128, k * 128], a)
                T.copy(B[bx * 128, k * 128], b)
                T.copy(SA[by * 128, k], sa)
                T.copy(SB[bx * 128, k], sb)
                T.gemm(a, b, dot, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(128, 128):
                    acc[i, j] = acc[i, j] + T.cast(dot[i, j], "float32") * (sa[i, 0] * sb[j, 0])
            T.copy(acc, C[by * 128, bx * 128])

    return main
