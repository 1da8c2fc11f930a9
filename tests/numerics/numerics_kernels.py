"""Small kernels over the macros of ``kernelforge.numerics.tile``; TileLang reads kernels from files."""

from __future__ import annotations

import tilelang.language as T

from kernelforge.numerics.tile import elementary, row_sum

COLUMNS = 512


def elementwise(name, rows, bm=16, columns=COLUMNS, threads=128):
    """y = function(x), both float32 [rows, columns]."""
    function = getattr(elementary, name)

    @T.prim_func
    def main(x: T.Tensor((rows, columns), "float32"), y: T.Tensor((rows, columns), "float32")):
        with T.Kernel(T.ceildiv(rows, bm), threads=threads) as bx:
            xs = T.alloc_shared((bm, columns), "float32")
            T.copy(x[bx * bm, 0], xs)
            for i, j in T.Parallel(bm, columns):
                xs[i, j] = function(xs[i, j])
            T.copy(xs, y[bx * bm, 0])

    return main


def elementwise_global(name, rows, columns=COLUMNS, threads=128):
    """The same without shared memory, so that threads do not depend on one another."""
    function = getattr(elementary, name)

    @T.prim_func
    def main(x: T.Tensor((rows, columns), "float32"), y: T.Tensor((rows, columns), "float32")):
        with T.Kernel(rows, threads=threads) as bx:
            for j in T.Parallel(columns):
                y[bx, j] = function(x[bx, j])

    return main


def softmax_like(rows, bm=16, columns=COLUMNS, threads=128):
    """y = exp2(x - 3/4) * recip(1 + exp2(x)): several calls, nested, in one statement."""

    @T.prim_func
    def main(x: T.Tensor((rows, columns), "float32"), y: T.Tensor((rows, columns), "float32")):
        with T.Kernel(T.ceildiv(rows, bm), threads=threads) as bx:
            xs = T.alloc_shared((bm, columns), "float32")
            T.copy(x[bx * bm, 0], xs)
            for i, j in T.Parallel(bm, columns):
                xs[i, j] = elementary.exp2(xs[i, j] - T.float32(0.75)) * elementary.recip(
                    T.float32(1) + elementary.exp2(xs[i, j])
                )
            T.copy(xs, y[bx * bm, 0])

    return main


def normalize_rounds(rows, rounds, bm=16, columns=4, threads=128):
    """``rounds`` times x[i, :] *= recip_positive(R(n) of x[i, :]): macros in serial loops inside T.Parallel."""

    @T.prim_func
    def main(x: T.Tensor((rows, columns), "float32"), y: T.Tensor((rows, columns), "float32")):
        with T.Kernel(T.ceildiv(rows, bm), threads=threads) as bx:
            xs = T.alloc_shared((bm, columns), "float32")
            row = T.alloc_local((columns,), "float32")
            T.copy(x[bx * bm, 0], xs)
            for i in T.Parallel(bm):
                for c in T.serial(columns):
                    row[c] = xs[i, c]
                for _ in T.serial(rounds):
                    scale = T.alloc_var("float32")
                    scale = elementary.recip_positive(row_sum.row_sum_of([row[c] for c in range(columns)]))
                    for c in T.serial(columns):
                        row[c] = row[c] * scale
                for c in T.serial(columns):
                    xs[i, c] = row[c]
            T.copy(xs, y[bx * bm, 0])

    return main


def row_sums(rows, columns, bm=16, threads=128):
    """y[i] = R(columns) of x[i, :]."""

    @T.prim_func
    def main(x: T.Tensor((rows, columns), "float32"), y: T.Tensor((rows,), "float32")):
        with T.Kernel(T.ceildiv(rows, bm), threads=threads) as bx:
            xs = T.alloc_shared((bm, columns), "float32")
            ys = T.alloc_shared((bm,), "float32")
            T.copy(x[bx * bm, 0], xs)
            row_sum.row_sum(xs, ys)
            for i in T.Parallel(bm):
                y[bx * bm + i] = ys[i]

    return main


def row_sums_by_tiles(rows, columns, width, bm=16, threads=128):
    """The same, ``width`` columns at a time."""

    @T.prim_func
    def main(x: T.Tensor((rows, columns), "float32"), y: T.Tensor((rows,), "float32")):
        with T.Kernel(T.ceildiv(rows, bm), threads=threads) as bx:
            xs = T.alloc_shared((bm, width), "float32")
            lanes = T.alloc_shared((bm, 32), "float32")
            ys = T.alloc_shared((bm,), "float32")
            row_sum.clear_lanes(lanes)
            for k in T.serial(columns // width):
                T.copy(x[bx * bm, k * width], xs)
                row_sum.accumulate_lanes(lanes, xs)
            row_sum.join_lanes(lanes, ys)
            for i in T.Parallel(bm):
                y[bx * bm + i] = ys[i]

    return main
