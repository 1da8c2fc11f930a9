"""Kernels that no verifier would pass, to see that the artifact lint stops what slips in later."""

import tilelang.language as T


def division(columns=64):
    @T.prim_func
    def main(X: T.Tensor((columns,), "float32"), Y: T.Tensor((columns,), "float32")):
        with T.Kernel(1, threads=32) as bx:
            for i in T.Parallel(columns):
                Y[bx + i] = X[bx + i] / (X[bx] + T.float32(3.0))

    return main


def exponential(columns=64):
    @T.prim_func
    def main(X: T.Tensor((columns,), "float32"), Y: T.Tensor((columns,), "float32")):
        with T.Kernel(1, threads=32) as bx:
            for i in T.Parallel(columns):
                Y[bx + i] = T.exp(X[bx + i])

    return main
