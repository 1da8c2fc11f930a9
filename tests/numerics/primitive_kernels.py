"""One kernel per primitive of ``numerics``; TileLang reads their source, so they live in a file."""

import tilelang.language as T

from kernelforge.numerics.tile import elementary
from kernelforge.numerics.tile.exact_dot import exact_dot as exact_dot_tile
from kernelforge.numerics.tile.row_sum import row_sum as row_sum_tile


def exact_dot(N, K, a_dtype, block_M):
    M = T.dynamic("M")

    @T.prim_func
    def main(A: T.Tensor((M, K), a_dtype), B: T.Tensor((N, K), "int8"), out: T.Tensor((M, N), "int32")):
        with T.Kernel(T.ceildiv(M, block_M), threads=128) as bx:
            a = T.alloc_shared((block_M, K), a_dtype)
            b = T.alloc_shared((N, K), "int8")
            dot = T.alloc_fragment((block_M, N), "int32")
            T.copy(A[bx * block_M, 0], a)
            T.copy(B[0, 0], b)
            exact_dot_tile(a, b, dot)
            T.copy(dot, out[bx * block_M, 0])

    return main


def row_sum(columns, block_M):
    M = T.dynamic("M")

    @T.prim_func
    def main(X: T.Tensor((M, columns), "float32"), out: T.Tensor((M,), "float32")):
        with T.Kernel(T.ceildiv(M, block_M), threads=128) as bx:
            x = T.alloc_shared((block_M, columns), "float32")
            total = T.alloc_shared((block_M,), "float32")
            T.copy(X[bx * block_M, 0], x)
            row_sum_tile(x, total)
            T.copy(total, out[bx * block_M])

    return main


def elementwise(function, columns, block_M):
    M = T.dynamic("M")
    apply = getattr(elementary, function)

    @T.prim_func
    def main(X: T.Tensor((M, columns), "float32"), out: T.Tensor((M, columns), "float32")):
        with T.Kernel(T.ceildiv(M, block_M), threads=128) as bx:
            x = T.alloc_shared((block_M, columns), "float32")
            y = T.alloc_shared((block_M, columns), "float32")
            T.copy(X[bx * block_M, 0], x)
            for i, j in T.Parallel(block_M, columns):
                y[i, j] = apply(x[i, j])
            T.copy(y, out[bx * block_M, 0])

    return main
