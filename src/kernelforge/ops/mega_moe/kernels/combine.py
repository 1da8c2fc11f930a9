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
            # A slot's row is known before the loop over columns, which then holds no choice and becomes vectors.
            row = T.alloc_var("int32")
            total = T.alloc_fragment((block_N,), "float32")
            for i in T.serial(block_T):
                if by * block_T + i < tokens:
                    T.clear(total)
                    for s in T.serial(slots):
                        row = inverse[by * block_T + i, s]
                        if row >= 0:
                            for j in T.Parallel(block_N):
                                bits = T.alloc_var("int32")
                                bits = 0
                                if bx * block_N + j < hidden:
                                    bits = T.reinterpret(y[row, bx * block_N + j], "int32")
                                total[j] = total[j] + T.reinterpret(read_bits(bits), "float32")
                    for j in T.Parallel(block_N):
                        if bx * block_N + j < hidden:
                            code = T.alloc_var("int32")
                            code = bf16.encode(T.reinterpret(total[j], "int32"))
                            out[by * block_T + i, bx * block_N + j] = T.cast(code, "uint16")

    return main
