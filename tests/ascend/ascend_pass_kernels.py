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


def direct_rows(N=48):
    """Y = 2 X + bias + scale, all of it read and written without a copy; rows end at M, or at a number read."""
    M = T.dynamic("M")

    @T.prim_func
    def main(
        X: T.Tensor((M, N), "int32"),
        bias: T.Tensor((N,), "int32"),
        scale: T.Tensor((3,), "int32"),
        last: T.Tensor((1,), "int32"),
        Y: T.Tensor((M, N), "int32"),
    ):
        with T.Kernel(T.ceildiv(M, 16), threads=128) as bx:
            rows = T.alloc_var("int32")
            rows = T.min(last[0] - bx * 16, 16)
            for i, j in T.Parallel(16, N):
                if i < rows:
                    row = T.min(bx * 16 + i, M - 1)
                    Y[bx * 16 + i, j] = X[row, j] * 2 + bias[j] + scale[T.min(j // 8, 2)]

    return main


def streams(count=4, C=64, gap=False):
    """The sum of streams that lie side by side in each row, and each of them plus one; ``gap``: without their ends."""
    M = T.dynamic("M")
    columns = C - 4 if gap else C

    @T.prim_func
    def main(
        X: T.Tensor((M, count * C), "int32"),
        total: T.Tensor((M, C), "int32"),
        Y: T.Tensor((M, count * C), "int32"),
    ):
        with T.Kernel(T.ceildiv(M, 8), threads=128) as bx:
            for i, c in T.Parallel(8, columns):
                sums = T.alloc_var("int32")
                sums = 0
                for j in T.serial(count):
                    if bx * 8 + i < M:
                        sums = sums + X[bx * 8 + i, j * C + c]
                        Y[bx * 8 + i, j * C + c] = X[bx * 8 + i, j * C + c] + 1
                if bx * 8 + i < M:
                    total[bx * 8 + i, c] = sums

    return main


def not_boxes():
    """A gather, a scatter, a tensor read and written, a store of every other element, a store that data lets pass."""

    @T.prim_func
    def main(
        X: T.Tensor((64, 32), "int32"),
        table: T.Tensor((16,), "int32"),
        first: T.Tensor((1,), "int32"),
        gathered: T.Tensor((16, 32), "int32"),
        scattered: T.Tensor((64,), "int32"),
        turned: T.Tensor((16,), "int32"),
        sparse: T.Tensor((32,), "int32"),
        chosen: T.Tensor((16,), "int32"),
    ):
        with T.Kernel(1, threads=128):
            for i, j in T.Parallel(16, 32):
                gathered[i, j] = X[table[i], j] + first[0]
            for i in T.Parallel(16):
                scattered[table[i]] = i
                turned[i] = turned[i] * 3
                sparse[2 * i] = i
                if table[i] > 20:
                    chosen[i] = i

    return main


def parts():
    """A tile whose halves are loaded by themselves."""

    rows = T.dynamic("M")

    @T.prim_func
    def main(X: T.Tensor((rows, 32), "float32"), Y: T.Tensor((rows, 32), "float32")):
        with T.Kernel(T.ceildiv(rows, 16), threads=128) as bx:
            x = T.alloc_shared((16, 32), "float32")
            T.copy(X[bx * 16, 0], x[0:8, 0:32])
            T.copy(X[bx * 16 + 8, 0], x[8:16, 0:32])
            for i, j in T.Parallel(16, 32):
                x[i, j] = x[i, j] + x[i, j]
            T.copy(x, Y[bx * 16, 0])

    return main


def picks():
    """A thread's own variables: a row to read, how many to add, a sum, and a value with a name."""

    @T.prim_func
    def main(X: T.Tensor((64, 32), "int32"), rows: T.Tensor((64, 16), "int32"), Y: T.Tensor((64, 32), "int32")):
        with T.Kernel(4, threads=128) as bx:
            x = T.alloc_shared((16, 32), "int32")
            row = T.alloc_shared((1, 16), "int32")
            y = T.alloc_shared((16, 32), "int32")
            T.copy(X[bx * 16, 0], x)
            T.copy(rows[bx, 0], row)
            for i, j in T.Parallel(16, 32):
                at = T.alloc_var("int32")
                at = row[0, i] % 16
                count = T.alloc_var("int32")
                count = row[0, i] % 4
                added = T.alloc_var("int32")
                added = 0
                for k in T.serial(count):
                    added = added + x[at, (j + k) % 32]
                twice = added * 2
                y[i, j] = twice + added
            T.copy(y, Y[bx * 16, 0])

    return main


def certain():
    """A store under a condition that only z3 proves, and one that no proof decides."""

    @T.prim_func
    def main(X: T.Tensor((64, 32), "float32"), Y: T.Tensor((64, 32), "float32"), start: T.Tensor((1,), "int32")):
        with T.Kernel(4, threads=128) as bx:
            row = T.alloc_var("int32")
            row = start[0] + bx
            if row * row >= 0:
                for i, j in T.Parallel(16, 32):
                    Y[bx * 16 + i, j] = X[bx * 16 + i, j]
            if row > 1:
                for i, j in T.Parallel(16, 32):
                    Y[bx * 16 + i, j] = 2.0

    return main
