"""A kernel of one pinned exponential per element, and the fault that makes it approximate in generated code."""

from __future__ import annotations

import re

import tilelang.language as T

from kernelforge.numerics.tile import elementary


def exponentials(count, width=64):
    """Y = exp2(X), for ``count`` elements in blocks of ``width``."""

    @T.prim_func
    def main(X: T.Tensor((count,), "float32"), Y: T.Tensor((count,), "float32")):
        with T.Kernel(T.ceildiv(count, width), threads=width) as bx:
            x = T.alloc_shared((width,), "float32")
            y = T.alloc_fragment((width,), "float32")
            T.copy(X[bx * width], x)
            for i in T.Parallel(width):
                y[i] = elementary.exp2(x[i])
            T.copy(y, Y[bx * width])

    return main


def approximated(line: str) -> str:
    """A line of generated code whose polynomial in ``r`` is the C library's exp2 instead, or the line as it is."""
    return re.sub(r"^(\s*q = ).*;$", r"\1exp2f(r);", line)
