"""First expert layer: grouped W4A8 product, clamped SwiGLU, token weight and MXFP8 quantization in one kernel."""

import tilelang.language as T

from ....formats.tile.mx import BLOCK, block_scales, element_code
from ....numerics.tile.groups import group_of_tile
from ....numerics.tile.mx_block import mx_block_accumulate
from ....numerics.tile.scalar import bits_of
from .activation import clamped, silu, weighed


def moe_linear1(inter, hidden, experts, limit, block_M, block_N, block_K, threads, num_stages):
    """MXFP8 of clamp-SwiGLU(x W1[e]^T) * weight, for rows sorted by expert.

    W1 of an expert is ``inter`` gate rows, then ``inter`` up rows; a tile takes the same columns of both, so that the
    activation never leaves it.

    Args:
        inter, hidden: static extents, multiples of 32; the number of rows M is dynamic.
        experts: number of experts.
        limit: of the SwiGLU clamp, infinite for none.
        block_M, block_N, block_K, threads, num_stages: schedule; never changes a bit. block_N and block_K are
            multiples of 32.
    """
    M = T.dynamic("M")
    packed, per_row = hidden // 2, hidden // BLOCK
    tile_packed, tile_blocks = block_K // 2, block_K // BLOCK

    @T.prim_func
    def main(
        A: T.Tensor((M, hidden), "uint8"),
        A_scale: T.Tensor((M, per_row), "uint8"),
        W: T.Tensor((experts * 2 * inter, packed), "uint8"),
        W_scale: T.Tensor((experts * 2 * inter, per_row), "uint8"),
        offsets: T.Tensor((experts + 1,), "int32"),
        weight: T.Tensor((M,), "float32"),
        out: T.Tensor((M, inter), "uint8"),
        out_scale: T.Tensor((M, inter // BLOCK), "uint8"),
    ):
        with T.Kernel(T.ceildiv(inter, block_N), T.ceildiv(M, block_M) + experts, threads=threads) as (bx, by):
            expert = T.alloc_var("int32")
            row = T.alloc_var("int32")
            rows = T.alloc_var("int32")
            expert, row, rows = group_of_tile(offsets, experts, block_M, by)
            if expert >= 0:
                a = T.alloc_shared((block_M, block_K), "uint8")
                a_scale = T.alloc_shared((block_M, tile_blocks), "uint8")
                w_gate = T.alloc_shared((block_N, tile_packed), "uint8")
                w_gate_scale = T.alloc_shared((block_N, tile_blocks), "uint8")
                w_up = T.alloc_shared((block_N, tile_packed), "uint8")
                w_up_scale = T.alloc_shared((block_N, tile_blocks), "uint8")
                gate = T.alloc_fragment((block_M, block_N), "float32")
                up = T.alloc_fragment((block_M, block_N), "float32")
                T.clear(gate)
                T.clear(up)
                for k in T.Pipelined(T.ceildiv(hidden, block_K), num_stages=num_stages):
                    T.copy(A[row, k * block_K], a)
                    T.copy(A_scale[row, k * tile_blocks], a_scale)
                    T.copy(W[expert * 2 * inter + bx * block_N, k * tile_packed], w_gate)
                    T.copy(W_scale[expert * 2 * inter + bx * block_N, k * tile_blocks], w_gate_scale)
                    T.copy(W[expert * 2 * inter + inter + bx * block_N, k * tile_packed], w_up)
                    T.copy(W_scale[expert * 2 * inter + inter + bx * block_N, k * tile_blocks], w_up_scale)
                    blocks = per_row - k * tile_blocks
                    mx_block_accumulate(gate, a, a_scale, w_gate, w_gate_scale, "e4m3_e8m0", blocks, rows)
                    mx_block_accumulate(up, a, a_scale, w_up, w_up_scale, "e4m3_e8m0", blocks, rows)
                token_weight = T.alloc_shared((block_M,), "float32")
                for i in T.Parallel(block_M):
                    value = T.alloc_var("float32")
                    value = T.float32(0)
                    if i < rows:
                        value = weight[row + i]
                    token_weight[i] = value
                activated = T.alloc_shared((block_M, block_N), "float32")
                for i, j in T.Parallel(block_M, block_N):
                    if i < rows:
                        activated[i, j] = clamped(gate[i, j], limit)
                for i, j in T.Parallel(block_M, block_N):
                    if i < rows:
                        activated[i, j] = silu(activated[i, j])
                for i, j in T.Parallel(block_M, block_N):
                    if i < rows:
                        activated[i, j] = weighed(activated[i, j], up[i, j], token_weight[i], limit)
                scale = T.alloc_shared((block_M, block_N // BLOCK), "uint8")
                block_scales(activated, scale, bits_of, "e4m3", "ceil", rows)
                for i, b in T.Parallel(block_M, block_N // BLOCK):
                    if i < rows and bx * block_N + b * BLOCK < inter:
                        out_scale[row + i, bx * (block_N // BLOCK) + b] = scale[i, b]
                for i, b, q in T.Parallel(block_M, block_N // BLOCK, BLOCK):
                    if i < rows and bx * block_N + b * BLOCK < inter:
                        byte = T.alloc_var("int32")
                        byte = T.cast(scale[i, b], "int32")
                        bits = T.alloc_var("int32")
                        bits = bits_of(activated[i, b * BLOCK + q])
                        code = T.alloc_var("int32")
                        code = element_code(bits, byte, "e4m3")
                        out[row + i, bx * block_N + b * BLOCK + q] = T.cast(code, "uint8")

    return main
