"""Small kernels whose IR the pass tests compare."""

import tilelang.language as T


def three_axes():
    """A copy on a grid of three axes."""

    @T.prim_func
    def main(X: T.Tensor((2, 3, 32), "float32"), Y: T.Tensor((2, 3, 32), "float32")):
        with T.Kernel(4, 3, 2, threads=128) as (bx, by, bz):
            for i in T.Parallel(8):
                Y[bz, by, bx * 8 + i] = X[bz, by, bx * 8 + i]

    return main


def bindings():
    """One binding of index arithmetic, one of a loaded value."""

    @T.prim_func
    def main(X: T.Tensor((64, 32), "float32"), Y: T.Tensor((64, 32), "float32"), start: T.Tensor((1,), "int32")):
        with T.Kernel(4, threads=128) as bx:
            x = T.alloc_shared((16, 32), "float32")
            row = bx * 16
            first = start[0]
            T.copy(X[row + first, 0], x)
            T.copy(x, Y[row, 0])

    return main


def doubled_operand():
    """An operand that vector code produces, used by two gemms."""

    @T.prim_func
    def main(A: T.Tensor((32, 32), "int8"), B: T.Tensor((32, 32), "int8"), C: T.Tensor((32, 32), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((32, 32), "int8")
            b = T.alloc_shared((32, 32), "int8")
            c = T.alloc_fragment((32, 32), "int32")
            d = T.alloc_fragment((32, 32), "int32")
            T.copy(B, b)
            for i, j in T.Parallel(32, 32):
                a[i, j] = T.cast(T.cast(A[i, j], "int32") * 2, "int8")
            T.gemm(a, b, c, transpose_B=True, clear_accum=True)
            T.gemm(a, b, d, transpose_B=True, clear_accum=True)
            for i, j in T.Parallel(32, 32):
                C[i, j] = c[i, j] + d[i, j]

    return main


def elementwise(M=None):
    """Y = X + X through a thread's own variable."""
    rows = T.dynamic("M") if M is None else M

    @T.prim_func
    def main(X: T.Tensor((rows, 32), "float32"), Y: T.Tensor((rows, 32), "float32")):
        with T.Kernel(T.ceildiv(rows, 16), threads=128) as bx:
            x = T.alloc_shared((16, 32), "float32")
            y = T.alloc_fragment((16, 32), "float32")
            row = bx * 16
            T.copy(X[row, 0], x)
            T.clear(y)
            for i, j in T.Parallel(16, 32):
                twice = T.alloc_var("float32")
                twice = x[i, j] + x[i, j]
                y[i, j] = y[i, j] + twice
            T.copy(y, Y[row, 0])

    return main


def filling_ub():
    """Tiles of 128 KiB."""
    M = T.dynamic("M")

    @T.prim_func
    def main(X: T.Tensor((M, 1024), "float32"), Y: T.Tensor((M, 1024), "float32")):
        with T.Kernel(T.ceildiv(M, 32), threads=128) as bx:
            x = T.alloc_shared((32, 1024), "float32")
            T.copy(X[bx * 32, 0], x)
            T.copy(x, Y[bx * 32, 0])

    return main


def converting_copy():
    @T.prim_func
    def main(X: T.Tensor((16, 32), "int8"), Y: T.Tensor((16, 32), "int32")):
        with T.Kernel(1, threads=128):
            x = T.alloc_shared((16, 32), "int32")
            T.copy(X, x)
            T.copy(x, Y)

    return main


def global_copy():
    @T.prim_func
    def main(X: T.Tensor((16, 32), "int32"), Y: T.Tensor((16, 32), "int32")):
        with T.Kernel(1, threads=128):
            T.copy(X, Y)

    return main


def two_orientations():
    """One tile as it is and transposed."""

    @T.prim_func
    def main(A: T.Tensor((32, 32), "int8"), C: T.Tensor((32, 32), "int32")):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((32, 32), "int8")
            c = T.alloc_fragment((32, 32), "int32")
            T.copy(A, a)
            T.gemm(a, a, c, clear_accum=True)
            T.copy(c, C)

    return main
