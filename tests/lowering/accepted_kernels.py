"""Kernels inside the portable subset, one for each thing it allows."""

import tilelang.language as T

from kernelforge.numerics.tile.composite import composite
from kernelforge.numerics.tile.rounded_dot import rounded_dot


def lane_sums():
    """Row sums in a pinned tree, Newton reciprocal from an integer seed, inner serial loops."""

    @T.prim_func
    def main(X: T.Tensor((64, 128), "float32"), Y: T.Tensor((64, 128), "float32")):
        with T.Kernel(T.ceildiv(64, 32), threads=64) as bx:
            x = T.alloc_shared((32, 128), "float32")
            part = T.alloc_shared((32, 32), "float32")
            T.copy(X[bx * 32, 0], x)
            for i, lane in T.Parallel(32, 32):
                part[i, lane] = x[i, lane]
                for q in T.serial(3):
                    part[i, lane] = part[i, lane] + x[i, (q + 1) * 32 + lane]
            for h in T.unroll(5):
                for i, lane in T.Parallel(32, 32):
                    if lane < (16 >> h):
                        part[i, lane] = part[i, lane] + part[i, lane + (16 >> h)]
            for i, j in T.Parallel(32, 128):
                seed = T.reinterpret("float32", 0x7EF311C7 - T.reinterpret("int32", part[i, 0]))
                step = T.alloc_var("float32")
                step = seed * (T.float32(2.0) - part[i, 0] * seed)
                x[i, j] = x[i, j] * step
            T.copy(x, Y[bx * 32, 0])

    return main


def rounding_by_bits():
    """RNE to an integer by the bits of a magic sum, bf16 as bits, -0 and NaN by compare and select."""

    @T.prim_func
    def main(X: T.Tensor((64,), "uint16"), Y: T.Tensor((64,), "int8"), Z: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(64):
                value = T.reinterpret("float32", T.cast(X[i], "int32") << 16) * T.float32(1.25)
                Y[i] = T.cast(T.reinterpret("int32", value + T.float32(12582912.0)) - 0x4B400000, "int8")
                Z[i] = T.if_then_else(
                    value < Z[i], Z[i], T.if_then_else(value == T.float32(0.0), T.float32(0.0), value)
                )

    return main


def ranks_and_counts():
    """Selection by rank with indirect stores; integer atomics at loaded indices; integer maxima."""

    @T.prim_func
    def main(X: T.Tensor((64,), "int32"), Y: T.Tensor((64,), "int32"), H: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_shared((64,), "int32")
            rank = T.alloc_shared((64,), "int32")
            T.copy(X, x)
            for i in T.Parallel(64):
                rank[i] = 0
                for q in T.serial(64):
                    rank[i] = rank[i] + T.if_then_else(x[q] > x[i] or (x[q] == x[i] and q < i), 1, 0)
            for i in T.Parallel(64):
                if not rank[i] >= 16:
                    Y[rank[i]] = T.max(i, 3)
                T.atomic_add(H[x[i] & 63], 1)

    return main


def bounded_loop_with_a_data_dependent_if():
    @T.prim_func
    def main(X: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_shared((64,), "int32")
            local = T.alloc_local((4,), "int32")
            T.copy(X, x)
            for q in T.serial(32):
                if q < x[0]:
                    for i in T.Parallel(64):
                        for u in T.serial(4):
                            local[u] = x[i] - u
                        x[i] = local[0] + local[3]
            for i in T.Parallel(64):
                for q in T.serial(X[i]):
                    X[i] = x[i] // 3 + x[i] % 3 + q

    return main


def pipelined_int8_gemm():
    """Dynamic M, two grid axes, a software pipeline, int8 x int8 -> int32."""
    M = T.dynamic("M")

    @T.prim_func
    def main(A: T.Tensor((M, 128), "int8"), B: T.Tensor((64, 128), "int8"), C: T.Tensor((M, 64), "int32")):
        with T.Kernel(2, T.ceildiv(M, 32), threads=128) as (bx, by):
            a = T.alloc_shared((32, 32), "int8")
            b = T.alloc_shared((32, 32), "int8")
            c = T.alloc_fragment((32, 32), "int32")
            T.clear(c)
            for k in T.Pipelined(4, num_stages=2):
                T.copy(A[by * 32, k * 32], a)
                T.copy(B[bx * 32, k * 32], b)
                T.gemm(a, b, c, transpose_B=True)
            T.copy(c, C[by * 32, bx * 32])

    return main


def rounded_product(copied=False):
    """A product of native mode of tiles that elementwise code fills; ``copied``: one is filled by a copy."""

    @T.prim_func
    def main(X: T.Tensor((16, 32), "uint16"), Y: T.Tensor((16, 16), "float32")):
        with T.Kernel(1, threads=32) as _:
            a = T.alloc_shared((16, 32), "uint16")
            b = T.alloc_shared((16, 32), "uint16")
            out = T.alloc_fragment((16, 16), "float32")
            if copied:
                T.copy(X, a)
            else:
                for i, k in T.Parallel(16, 32):
                    a[i, k] = X[i, k]
            for i, k in T.Parallel(16, 32):
                b[i, k] = a[i, k]
            rounded_dot(a, b, out, True)
            T.copy(out, Y)

    return main


def composites():
    """A named region around a portable body, and one inside another."""

    @T.prim_func
    def main(X: T.Tensor((64,), "float32"), Y: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64) as _, composite("outer", X, Y, variant=2), composite("inner", Y):
            for i in T.Parallel(64):
                Y[i] = X[i] * T.float32(0.25)

    return main
