"""Backward of the expert layer's activation, as a TileLang kernel."""

import tilelang.language as T

from ....formats.tile import bf16
from ....numerics.tile.elementary import sigmoid, silu
from ....numerics.tile.row_sum import accumulate_lanes, clear_lanes, join_lanes
from ....numerics.tile.scalar import bits_of, read


@T.macro
def _derivatives(gate, up, grad, weight, limit, share, grad_gate, grad_up):
    """Gradients of gate and up, and the element's share of the weight's gradient, into one-element variables."""
    g = T.alloc_var("float32")
    u = T.alloc_var("float32")
    s = T.alloc_var("float32")
    slope = T.alloc_var("float32")
    value = T.alloc_var("float32")
    down = T.alloc_var("float32")
    g = gate
    g = T.if_then_else(g > T.float32(limit), T.float32(limit), g)
    u = up
    u = T.if_then_else(u > T.float32(limit), T.float32(limit), u)
    u = T.if_then_else(u < T.float32(-limit), T.float32(-limit), u)
    g = read(g)
    u = read(u)
    s = read(sigmoid(g))
    slope = s + read(g * s) * (T.float32(1) - s)
    value = read(silu(g))
    down = read(grad)
    share[0] = down * read(value * u)
    down = read(down * read(weight))
    grad_gate[0] = T.if_then_else(gate > T.float32(limit), T.float32(0), read(down * u) * read(slope))
    grad_up[0] = T.if_then_else((up > T.float32(limit)) | (up < T.float32(-limit)), T.float32(0), down * value)


def moe_activation_backward(inter, limit, block_M, block_N, threads):
    """Gradients of gate and up (bfloat16 bits) and of the row's weight, from those of the activation.

    Args:
        inter: static extent, a multiple of 32; the number of rows M is dynamic.
        limit: of the SwiGLU clamp.
        block_M, block_N, threads: schedule; never changes a bit. block_N is a multiple of 32.
    """
    M = T.dynamic("M")

    @T.prim_func
    def main(
        gate_up: T.Tensor((M, 2 * inter), "float32"),
        grad: T.Tensor((M, inter), "float32"),
        weight: T.Tensor((M,), "float32"),
        grad_gate_up: T.Tensor((M, 2 * inter), "uint16"),
        grad_weight: T.Tensor((M,), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as by:
            lanes = T.alloc_shared((block_M, 32), "float32")
            shares = T.alloc_shared((block_M, block_N), "float32")
            total = T.alloc_shared((block_M,), "float32")
            clear_lanes(lanes)
            for k in T.serial(T.ceildiv(inter, block_N)):
                for i, j in T.Parallel(block_M, block_N):
                    row = by * block_M + i
                    column = k * block_N + j
                    share = T.alloc_local((1,), "float32")
                    grad_gate = T.alloc_local((1,), "float32")
                    grad_up = T.alloc_local((1,), "float32")
                    share[0] = T.float32(0)
                    if row < M and column < inter:
                        _derivatives(
                            gate_up[row, column],
                            gate_up[row, inter + column],
                            grad[row, column],
                            weight[row],
                            limit,
                            share,
                            grad_gate,
                            grad_up,
                        )
                        bits = T.alloc_var("int32")
                        bits = bits_of(grad_gate[0])
                        grad_gate_up[row, column] = T.cast(bf16.encode(bits), "uint16")
                        bits = bits_of(grad_up[0])
                        grad_gate_up[row, inter + column] = T.cast(bf16.encode(bits), "uint16")
                    shares[i, j] = share[0]
                accumulate_lanes(lanes, shares)
            join_lanes(lanes, total)
            for i in T.Parallel(block_M):
                if by * block_M + i < M:
                    grad_weight[by * block_M + i] = total[i]

    return main
