"""The kernel around a statement that is refused."""

import tilelang.language as T


def elementwise(statement):
    """A kernel of 64 fp32 elements around one macro, ``statement(X, Y, Z, i)``."""

    @T.prim_func
    def main(X: T.Tensor((64,), "float32"), Y: T.Tensor((64,), "float32"), Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(64):
                statement(X, Y, Z, i)

    return main
