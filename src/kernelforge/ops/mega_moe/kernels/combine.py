"""Combine: every token's expert rows added in slot order, rounded once."""

import tilelang.language as T

from ....formats.tile import bf16
from ....formats.tile.integer import read_bits


def moe_combine(hidden, slots, block_T, block_N, threads):
    """out[t] = bf16 of the sum over slots s, ascending from +0, of y[inverse[t, s]], where that is not -1.

    Args:
        hidden, slots: static extents.
        block_T, block_N, threads: schedule; never changes a bit.
    """
    tokens = T.dynamic("tokens")
    rows = T.dynamic("rows")

    @T.prim_func
    def main(
        y: T.Tensor((rows, hidden), "float32"),
        inverse: T.Tensor((tokens, slots), "int32"),
        out: T.Tensor((tokens, hidden), "uint16"),
    ):
        with T.Kernel(T.ceildiv(hidden, block_N), T.ceildiv(tokens, block_T), threads=threads) as (bx, by):
            source = T.alloc_shared((block_T, slots), "int32")
            for i, s in T.Parallel(block_T, slots):
                row = T.alloc_var("int32")
                row = -1
                if by * block_T + i < tokens:
                    row = inverse[by * block_T + i, s]
                source[i, s] = row
            for i, j in T.Parallel(block_T, block_N):
                if by * block_T + i < tokens and bx * block_N + j < hidden:
                    total = T.alloc_var("float32")
                    bits = T.alloc_var("int32")
                    total = T.float32(0)
                    for s in T.serial(slots):
                        if source[i, s] >= 0:
                            bits = T.reinterpret(y[source[i, s], bx * block_N + j], "int32")
                            total = total + T.reinterpret(read_bits(bits), "float32")
                    bits = T.reinterpret(total, "int32")
                    out[by * block_T + i, bx * block_N + j] = T.cast(bf16.encode(bits), "uint16")

    return main
