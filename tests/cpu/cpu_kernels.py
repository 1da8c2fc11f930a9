"""Small kernels for the CPU passes; TileLang reads their source, so they live in a file."""

import tilelang.language as T

from kernelforge.numerics.tile.mx_block import mx_block_accumulate


def scaled_rows(columns=64, rows=8, tile=8):
    """Y = 0.1 * X over a 2-D grid, through a shared tile and a fragment."""
    M = T.dynamic("M")

    @T.prim_func
    def main(X: T.Tensor((M, columns), "float32"), Y: T.Tensor((M, columns), "float32")):
        with T.Kernel(T.ceildiv(columns, tile), T.ceildiv(M, rows), threads=32) as (bx, by):
            x = T.alloc_shared((rows, tile), "float32")
            y = T.alloc_fragment((rows, tile), "float32")
            T.copy(X[by * rows, bx * tile], x)
            for i, j in T.Parallel(rows, tile):
                y[i, j] = x[i, j] * T.float32(0.1)
            T.copy(y, Y[by * rows, bx * tile])

    return main


def int8_dot(N=48, K=64, rows=16, transposed=True):
    """C = A B (or A B^T) by one exact dot; N and K are whole tiles."""
    M = T.dynamic("M")
    shape = (N, K) if transposed else (K, N)

    @T.prim_func
    def main(A: T.Tensor((M, K), "int8"), B: T.Tensor(shape, "int8"), C: T.Tensor((M, N), "int32")):
        with T.Kernel(T.ceildiv(M, rows), threads=32) as bx:
            a = T.alloc_shared((rows, K), "int8")
            b = T.alloc_shared(shape, "int8")
            c = T.alloc_fragment((rows, N), "int32")
            T.copy(A[bx * rows, 0], a)
            T.copy(B[0, 0], b)
            T.clear(c)
            T.gemm(a, b, c, transpose_B=transposed)
            T.copy(c, C[bx * rows, 0])

    return main


def unfusible(N=16, K=64):
    """Block accumulation whose weights are not copied from memory as they are: the region must keep its body."""
    M = T.dynamic("M")

    @T.prim_func
    def main(
        A: T.Tensor((M, K // 2), "uint8"),
        A_scale: T.Tensor((M, K // 32), "uint8"),
        W: T.Tensor((N, K // 2), "uint8"),
        W_scale: T.Tensor((N, K // 32), "uint8"),
        out: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, 16), threads=32) as bx:
            a = T.alloc_shared((16, K // 2), "uint8")
            a_scale = T.alloc_shared((16, K // 32), "uint8")
            w = T.alloc_shared((N, K // 2), "uint8")
            w_scale = T.alloc_shared((N, K // 32), "uint8")
            acc = T.alloc_fragment((16, N), "float32")
            T.clear(acc)
            T.copy(A[bx * 16, 0], a)
            T.copy(A_scale[bx * 16, 0], a_scale)
            for j, q in T.Parallel(N, K // 2):
                w[j, q] = W[N - 1 - j, q]
            T.copy(W_scale[0, 0], w_scale)
            mx_block_accumulate(acc, a, a_scale, w, w_scale, "e2m1", K // 32)
            T.copy(acc, out[bx * 16, 0])

    return main


def guarded_pairs(columns=64, rows=3):
    """Y[:, 2c + p] = X[:, 2c + p] - p over a guarded tail of rows: an unrolled loop inside a row that may not exist."""
    M = T.dynamic("M")

    @T.prim_func
    def main(X: T.Tensor((M, columns), "float32"), Y: T.Tensor((M, columns), "float32")):
        with T.Kernel(T.ceildiv(M, rows), threads=32) as bx:
            for i, c in T.Parallel(rows, columns // 2):
                if bx * rows + i < M:
                    for p in T.unroll(2):
                        difference = X[bx * rows + i, 2 * c + p] - T.cast(p, "float32")
                        Y[bx * rows + i, 2 * c + p] = difference

    return main


def conditions_that_change(columns=64):
    """Conditions on a loop's own variable, and on memory and a variable that the loop writes."""
    M = T.dynamic("M")

    @T.prim_func
    def main(X: T.Tensor((M, columns), "float32"), Y: T.Tensor((M, columns), "float32")):
        with T.Kernel(M, threads=32) as bx:
            for c in T.serial(columns):
                if c < 7:
                    Y[bx, c] = X[bx, c]
            for c in T.serial(columns):
                if Y[bx, 0] < T.float32(3):
                    Y[bx, 0] = X[bx, c]
            left = T.alloc_var("int32")
            left = 5
            for c in T.serial(columns):
                if left > 0:
                    Y[bx, c] = X[bx, c]
                    left = left - 1

    return main


def condition_on_a_variable(columns=64):
    """A condition on a variable that the loop reads and does not write."""
    M = T.dynamic("M")

    @T.prim_func
    def main(
        counts: T.Tensor((M,), "int32"), X: T.Tensor((M, columns), "float32"), Y: T.Tensor((M, columns), "float32")
    ):
        with T.Kernel(M, threads=32) as bx:
            left = T.alloc_var("int32")
            left = counts[bx]
            for c in T.serial(columns):
                if left > 0:
                    Y[bx, c] = X[bx, c] * T.cast(left, "float32")

    return main


def guarded_rows_and_columns(columns=70, rows=4, width=64):
    """A tile of rows that may not exist and columns that may not."""
    M = T.dynamic("M")

    @T.prim_func
    def main(X: T.Tensor((M, columns), "float32"), Y: T.Tensor((M, columns), "float32")):
        with T.Kernel(T.ceildiv(columns, width), T.ceildiv(M, rows), threads=32) as (bx, by):
            for i, c in T.Parallel(rows, width):
                if by * rows + i < M and bx * width + c < columns:
                    Y[by * rows + i, bx * width + c] = X[by * rows + i, bx * width + c] * T.float32(2)

    return main


def whole_tile(start_elsewhere=False, rows=32, columns=16, N=13, K=64):
    """A product smaller than its tile, and the whole tile stored; on request the sums start at ``out``."""
    M = T.dynamic("M")

    @T.prim_func
    def main(
        A: T.Tensor((M, K // 2), "uint8"),
        A_scale: T.Tensor((M, K // 32), "uint8"),
        W: T.Tensor((N, K // 2), "uint8"),
        W_scale: T.Tensor((N, K // 32), "uint8"),
        out: T.Tensor((rows, columns), "float32"),
    ):
        with T.Kernel(1, threads=32) as bx:
            a = T.alloc_shared((rows, K // 2), "uint8")
            a_scale = T.alloc_shared((rows, K // 32), "uint8")
            w = T.alloc_shared((columns, K // 2), "uint8")
            w_scale = T.alloc_shared((columns, K // 32), "uint8")
            acc = T.alloc_fragment((rows, columns), "float32")
            T.clear(acc)
            if start_elsewhere:
                T.copy(out[bx, 0], acc)
            T.copy(A[bx, 0], a)
            T.copy(A_scale[bx, 0], a_scale)
            T.copy(W[bx, 0], w)
            T.copy(W_scale[bx, 0], w_scale)
            mx_block_accumulate(acc, a, a_scale, w, w_scale, "e2m1", K // 32)
            T.copy(acc, out[bx, 0])

    return main


def kept_tiles(why, rows=8, columns=64):
    """Y = 0.1 * X through a tile that is read again, made row by row, or made of what it replaces."""
    M = T.dynamic("M")

    @T.prim_func
    def main(X: T.Tensor((M, columns), "float32"), Y: T.Tensor((M, columns), "float32")):
        with T.Kernel(T.ceildiv(M, rows), threads=32) as bx:
            x = T.alloc_shared((rows, columns), "float32")
            y = T.alloc_fragment((rows, columns), "float32")
            T.copy(X[bx * rows, 0], x)
            if why == "row_by_row":
                for i in T.Parallel(rows):
                    for j in T.serial(columns):
                        y[i, j] = x[i, j] * T.float32(0.1)
            else:
                for i, j in T.Parallel(rows, columns):
                    if why == "in_place":
                        y[i, j] = Y[bx * rows, columns - 1 - j] * T.float32(0.1)
                    else:
                        y[i, j] = x[i, j] * T.float32(0.1)
            T.copy(y, Y[bx * rows, 0])
            if why == "read_again":
                T.copy(y, X[bx * rows, 0])

    return main
