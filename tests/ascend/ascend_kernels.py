"""Portable kernels for the Ascend tests, each with what NumPy makes of the same inputs."""

import tilelang.language as T


def scaled_gemm(N, K, bm, bn, bk, stages=2):
    """C[M, N] = sum over chunks k of (A chunk . B chunk) * (SA[i, k] * SB[j, k]); M is dynamic."""
    M = T.dynamic("M")
    chunks = T.ceildiv(K, bk)

    @T.prim_func
    def main(
        A: T.Tensor((M, K), "int8"),
        B: T.Tensor((N, K), "int8"),
        SA: T.Tensor((M, chunks), "float32"),
        SB: T.Tensor((N, chunks), "float32"),
        C: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(T.ceildiv(N, bn), T.ceildiv(M, bm), threads=128) as (bx, by):
            a = T.alloc_shared((bm, bk), "int8")
            b = T.alloc_shared((bn, bk), "int8")
            sa = T.alloc_shared((bm, 1), "float32")
            sb = T.alloc_shared((bn, 1), "float32")
            dot = T.alloc_fragment((bm, bn), "int32")
            acc = T.alloc_fragment((bm, bn), "float32")
            T.clear(acc)
            for k in T.Pipelined(chunks, num_stages=stages):
                T.copy(A[by * bm, k * bk], a)
                T.copy(B[bx * bn, k * bk], b)
                T.copy(SA[by * bm, k], sa)
                T.copy(SB[bx * bn, k], sb)
                T.gemm(a, b, dot, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(bm, bn):
                    acc[i, j] = acc[i, j] + T.cast(dot[i, j], "float32") * (sa[i, 0] * sb[j, 0])
            T.copy(acc, C[by * bm, bx * bn])

    return main


def accumulating_gemm(M, N, K, bm, bn, bk, clear):
    """C = A B^T in int32, summed over chunks; ``clear`` is "fill" or "first" (how the sum starts)."""

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor((N, K), "int8"), C: T.Tensor((M, N), "int32")):
        with T.Kernel(T.ceildiv(N, bn), T.ceildiv(M, bm), threads=128) as (bx, by):
            a = T.alloc_shared((bm, bk), "int8")
            b = T.alloc_shared((bn, bk), "int8")
            c = T.alloc_fragment((bm, bn), "int32")
            T.clear(c)
            for k in T.Pipelined(K // bk, num_stages=2):
                T.copy(A[by * bm, k * bk], a)
                T.copy(B[bx * bn, k * bk], b)
                if clear == "fill":
                    T.gemm(a, b, c, transpose_B=True)
                else:
                    T.gemm(a, b, c, transpose_B=True, clear_accum=k == 0)
            T.copy(c, C[by * bm, bx * bn])

    return main


def interrupted_gemm(M, N, K, bk):
    """C = A B^T; between chunks the sums pass through vector code (C = 2 C), so they cannot stay in the cube unit."""

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor((N, K), "int8"), C: T.Tensor((M, N), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((M, bk), "int8")
            b = T.alloc_shared((N, bk), "int8")
            c = T.alloc_fragment((M, N), "int32")
            T.clear(c)
            for k in T.serial(K // bk):
                T.copy(A[0, k * bk], a)
                T.copy(B[0, k * bk], b)
                T.gemm(a, b, c, transpose_B=True)
                for i, j in T.Parallel(M, N):
                    c[i, j] = c[i, j] * 2
            T.copy(c, C)

    return main


def oriented_gemm(M, N, K, transpose_a, transpose_b):
    """C = op(A) op(B) with each operand as stored or transposed."""
    shape_a = (K, M) if transpose_a else (M, K)
    shape_b = (N, K) if transpose_b else (K, N)

    @T.prim_func
    def main(A: T.Tensor(shape_a, "int8"), B: T.Tensor(shape_b, "int8"), C: T.Tensor((M, N), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared(shape_a, "int8")
            b = T.alloc_shared(shape_b, "int8")
            c = T.alloc_fragment((M, N), "int32")
            T.copy(A, a)
            T.copy(B, b)
            T.gemm(a, b, c, transpose_A=transpose_a, transpose_B=transpose_b, clear_accum=True)
            T.copy(c, C)

    return main


def columns_gemm(M, N, K, part):
    """C = sum over column parts of A and B tiles that hold all of K."""

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor((N, K), "int8"), C: T.Tensor((M, N), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((M, K), "int8")
            b = T.alloc_shared((N, K), "int8")
            c = T.alloc_fragment((M, N), "int32")
            total = T.alloc_fragment((M, N), "int32")
            T.clear(total)
            T.copy(A, a)
            T.copy(B, b)
            for k in T.serial(K // part):
                T.gemm(
                    a[0:M, k * part : k * part + part],
                    b[0:N, k * part : k * part + part],
                    c,
                    transpose_B=True,
                    clear_accum=True,
                )
                for i, j in T.Parallel(M, N):
                    total[i, j] = total[i, j] + c[i, j]
            T.copy(total, C)

    return main


def column_sums_gemm(M, N, K):
    """Y[j] = sum over i of (A B^T)[i, j]: the sums are used across rows, which two vector cores cannot share."""

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor((N, K), "int8"), Y: T.Tensor((N,), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((M, K), "int8")
            b = T.alloc_shared((N, K), "int8")
            c = T.alloc_fragment((M, N), "int32")
            y = T.alloc_shared((N,), "int32")
            T.copy(A, a)
            T.copy(B, b)
            T.gemm(a, b, c, transpose_B=True, clear_accum=True)
            for j in T.Parallel(N):
                y[j] = 0
                for i in T.serial(M):
                    y[j] = y[j] + c[i, j]
            T.copy(y, Y)

    return main


def guarded_rows_gemm(M, N, K):
    """C[i, j] = (A B^T)[i, j] + 1000 i where j <= i, stored straight to global memory; elsewhere C keeps its value."""

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor((N, K), "int8"), C: T.Tensor((M, N), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((M, K), "int8")
            b = T.alloc_shared((N, K), "int8")
            c = T.alloc_fragment((M, N), "int32")
            T.copy(A, a)
            T.copy(B, b)
            T.gemm(a, b, c, transpose_B=True, clear_accum=True)
            for i, j in T.Parallel(M, N):
                if j <= i:
                    C[i, j] = c[i, j] + 1000 * i

    return main


def row_sums(R, C, bm):
    """Y[r] = the pinned 32-lane sum of row r."""

    @T.prim_func
    def main(X: T.Tensor((R, C), "float32"), Y: T.Tensor((R,), "float32")):
        with T.Kernel(T.ceildiv(R, bm), threads=128) as bx:
            x = T.alloc_shared((bm, C), "float32")
            part = T.alloc_fragment((bm, 32), "float32")
            y = T.alloc_shared((bm,), "float32")
            T.copy(X[bx * bm, 0], x)
            T.clear(part)
            for q in T.serial(C // 32):
                for i, lane in T.Parallel(bm, 32):
                    part[i, lane] = part[i, lane] + x[i, q * 32 + lane]
            for i, lane in T.Parallel(bm, 16):
                part[i, lane] = part[i, lane] + part[i, lane + 16]
            for i, lane in T.Parallel(bm, 8):
                part[i, lane] = part[i, lane] + part[i, lane + 8]
            for i in T.Parallel(bm):
                y[i] = ((part[i, 0] + part[i, 4]) + (part[i, 2] + part[i, 6])) + (
                    (part[i, 1] + part[i, 5]) + (part[i, 3] + part[i, 7])
                )
            T.copy(y, Y[bx * bm])

    return main


def histogram(R, C):
    """H[r, v] = how often v occurs in row r of X (int32 in [0, 64))."""

    @T.prim_func
    def main(X: T.Tensor((R, C), "int32"), H: T.Tensor((R, 64), "int32")):
        with T.Kernel(R, threads=128) as bx:
            x = T.alloc_shared((1, C), "int32")
            h = T.alloc_shared((1, 64), "int32")
            T.copy(X[bx, 0], x)
            T.fill(h, 0)
            for j in T.Parallel(C):
                v = T.alloc_var("int32")
                v = x[0, j]
                T.atomic_add(h[0, v], 1)
            T.copy(h, H[bx, 0])

    return main


def bits_of_three_axes(B, R, C):
    """Y = X * 3 as bf16 bits, on a grid of three axes; and Z = the largest code of each row."""

    @T.prim_func
    def main(X: T.Tensor((B, R, C), "uint16"), Y: T.Tensor((B, R, C), "uint16"), Z: T.Tensor((B, R), "int32")):
        with T.Kernel(T.ceildiv(C, 64), T.ceildiv(R, 8), B, threads=128) as (bx, by, bz):
            x = T.alloc_shared((8, 64), "uint16")
            y = T.alloc_shared((8, 64), "uint16")
            T.copy(X[bz, by * 8, bx * 64], x)
            for i, j in T.Parallel(8, 64):
                v = T.alloc_var("float32")
                v = T.reinterpret(T.cast(x[i, j], "int32") << 16, "float32") * T.float32(3.0)
                bits = T.alloc_var("int32")
                bits = T.reinterpret(v, "int32")
                y[i, j] = T.cast(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF, "uint16")
            T.copy(y, Y[bz, by * 8, bx * 64])
            if bx == 0:
                row = T.alloc_shared((8, C), "uint16")
                top = T.alloc_shared((8,), "int32")
                T.copy(X[bz, by * 8, 0], row)
                for i in T.Parallel(8):
                    top[i] = 0
                    for j in T.serial(C):
                        top[i] = T.max(top[i], T.cast(row[i, j], "int32"))
                T.copy(top, Z[bz, by * 8])

    return main


def shared_operand_gemm(M, N, K):
    """C = A B^T + the sum of A's row: one tile is read by the cube unit and by vector code."""

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor((N, K), "int8"), C: T.Tensor((M, N), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((M, K), "int8")
            b = T.alloc_shared((N, K), "int8")
            c = T.alloc_fragment((M, N), "int32")
            row = T.alloc_fragment((M,), "int32")
            T.copy(A, a)
            T.copy(B, b)
            for i in T.Parallel(M):
                row[i] = 0
                for k in T.serial(K):
                    row[i] = row[i] + T.cast(a[i, k], "int32")
            T.gemm(a, b, c, transpose_B=True, clear_accum=True)
            for i, j in T.Parallel(M, N):
                c[i, j] = c[i, j] + row[i]
            T.copy(c, C)

    return main


def restarting_gemm(M, N, K, bk):
    """Sums restart at every even chunk; Y adds up what they are after each chunk."""

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor((N, K), "int8"), Y: T.Tensor((M, N), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((M, bk), "int8")
            b = T.alloc_shared((N, bk), "int8")
            c = T.alloc_fragment((M, N), "int32")
            y = T.alloc_fragment((M, N), "int32")
            T.clear(c)
            T.clear(y)
            for k in T.serial(K // bk):
                T.copy(A[0, k * bk], a)
                T.copy(B[0, k * bk], b)
                T.gemm(a, b, c, transpose_B=True, clear_accum=k % 2 == 0)
                for i, j in T.Parallel(M, N):
                    y[i, j] = y[i, j] + c[i, j]
            T.copy(y, Y)

    return main


def staged_gemm(M, N, K, bk):
    """Operands in tiles of three dimensions, [stage, rows, columns]."""
    stages = K // bk

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor((N, K), "int8"), C: T.Tensor((M, N), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((stages, M, bk), "int8")
            b = T.alloc_shared((stages, N, bk), "int8")
            c = T.alloc_fragment((M, N), "int32")
            total = T.alloc_fragment((M, N), "int32")
            T.clear(total)
            for k in T.serial(stages):
                T.copy(A[0:M, k * bk : k * bk + bk], a[k, 0:M, 0:bk])
                T.copy(B[0:N, k * bk : k * bk + bk], b[k, 0:N, 0:bk])
            for k in T.serial(stages):
                T.gemm(a[k, 0:M, 0:bk], b[k, 0:N, 0:bk], c, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(M, N):
                    total[i, j] = total[i, j] + c[i, j]
            T.copy(total, C)

    return main


def biased_gemm(M, N, K, turned):
    """C[i, j] = (A B^T)[i, j] + D[i, j], or D[j, i] where turned, straight from and to global memory."""

    @T.prim_func
    def main(
        A: T.Tensor((M, K), "int8"),
        B: T.Tensor((N, K), "int8"),
        D: T.Tensor((M, N), "int32"),
        C: T.Tensor((M, N), "int32"),
    ):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((M, K), "int8")
            b = T.alloc_shared((N, K), "int8")
            c = T.alloc_fragment((M, N), "int32")
            T.copy(A, a)
            T.copy(B, b)
            T.gemm(a, b, c, transpose_B=True, clear_accum=True)
            for i, j in T.Parallel(M, N):
                if turned:
                    C[i, j] = c[i, j] + D[j, i]
                else:
                    C[i, j] = c[i, j] + D[i, j]

    return main
