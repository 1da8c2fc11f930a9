"""Kernels whose tile maps are wrong, each in one way."""

import tilelang.language as T


def doubled(rows=16, step=16, blocks=None, columns=40, last=40, lane=1):
    """out = x + x, row tile by row tile; every argument but its default breaks something."""
    M = T.dynamic("M")

    @T.prim_func
    def main(x: T.Tensor((M, columns), "int32"), out: T.Tensor((M, columns), "int32")):
        with T.Kernel(T.ceildiv(M, step) if blocks is None else blocks, threads=32) as bx:
            tile = T.alloc_shared((rows, columns), "int32")
            T.copy(x[bx * step, 0], tile)
            for i, j in T.Parallel(rows, last):
                if bx * step + i < M:
                    out[bx * step + i, j // lane] = tile[i, j] + tile[i, j]

    return main


def scattered():
    """Stores where the data says."""
    M = T.dynamic("M")

    @T.prim_func
    def main(where: T.Tensor((M,), "int32"), out: T.Tensor((M,), "int32")):
        with T.Kernel(T.ceildiv(M, 16), threads=32) as bx:
            for i in T.Parallel(16):
                if bx * 16 + i < M:
                    out[where[bx * 16 + i]] = 1

    return main


def unguarded():
    """The last tile's rows lie beyond M."""
    M = T.dynamic("M")

    @T.prim_func
    def main(out: T.Tensor((M,), "int32")):
        with T.Kernel(T.ceildiv(M, 16), threads=32) as bx:
            for i in T.Parallel(16):
                out[bx * 16 + i] = 1

    return main
