"""The formats as TileLang expressions, for use inside ``T.Parallel`` bodies.

Plain functions build one expression; ``T.macro`` functions store their steps in variables, so a value used twice is
computed once. All work on int32 (codes and bits are cast on load), so no compiler has float arithmetic to rewrite::

    for i, j in T.Parallel(rows, columns):
        byte = T.alloc_var("int32")
        byte = T.cast(packed[i, j], "int32")
        slices[i, 2 * j] = T.cast(e2m1.doubled(e2m1.low(byte)), "int8")
"""

from . import bf16, e2m1, e4m3, e8m0, integer, window

__all__ = ["bf16", "e2m1", "e4m3", "e8m0", "integer", "window"]
