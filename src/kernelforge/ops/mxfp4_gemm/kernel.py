"""MXFP4 GEMM, one TileLang kernel for every activation format, dense and grouped."""

import tilelang.language as T

from ...numerics.tile.groups import group_of_tile
from ...numerics.tile.mx_block import BLOCK, mx_block_accumulate
from ...numerics.tile.rounding import round_output, store_rounded

_A_STORAGE = {"e2m1": "uint8", "e4m3_e8m0": "uint8", "e4m3_f32": "uint8", "bf16": "uint16"}
_OUT_STORAGE = {"bfloat16": "uint16", "float16": "uint16", "float32": "float32"}


def mxfp4_gemm(N, K, experts, a_format, out_dtype, block_M, block_N, block_K, threads, num_stages):
    """out[M, N] = A[M, K] W[N, K]^T; with ``experts`` > 0, row i uses the weights of the group that holds i.

    Args:
        N, K: static extents; M is dynamic. K is a multiple of 32.
        experts: 0 for a dense GEMM, else the number of groups (``w`` [experts, N, K / 2], ``offsets`` [experts + 1]).
        a_format: "e2m1" | "e4m3_e8m0" | "e4m3_f32" | "bf16".
        out_dtype: "bfloat16" | "float16" | "float32" (16-bit floats are carried as their bits).
        block_M, block_N, block_K, threads, num_stages: schedule; never changes a bit of the result.
            block_K is a multiple of 32, of 128 for "e4m3_f32".
    """
    M = T.dynamic("M")
    per_scale = 128 if a_format == "e4m3_f32" else BLOCK
    stored_K, tile_K = (K // 2, block_K // 2) if a_format == "e2m1" else (K, block_K)
    scale_dtype = "float32" if a_format == "e4m3_f32" else "uint8"
    # BF16 carries no scale: its operand is one byte that nothing reads.
    scale_shape = (1, 1) if a_format == "bf16" else (M, T.ceildiv(K, per_scale))
    groups = max(experts, 1)

    @T.macro
    def row_tile(A, A_scale, W, W_scale, out, expert, row, rows, used, column):
        a = T.alloc_shared((block_M, tile_K), _A_STORAGE[a_format])
        a_scale = T.alloc_shared((block_M, block_K // per_scale), scale_dtype)
        w = T.alloc_shared((block_N, block_K // 2), "uint8")
        w_scale = T.alloc_shared((block_N, block_K // BLOCK), "uint8")
        acc = T.alloc_fragment((block_M, block_N), "float32")
        T.clear(acc)
        for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=num_stages):
            T.copy(A[row, k * tile_K], a)
            if a_format != "bf16":
                T.copy(A_scale[row, k * (block_K // per_scale)], a_scale)
            T.copy(W[expert * N + column, k * (block_K // 2)], w)
            T.copy(W_scale[expert * N + column, k * (block_K // BLOCK)], w_scale)
            mx_block_accumulate(acc, a, a_scale, w, w_scale, a_format, K // BLOCK - k * (block_K // BLOCK), used)
        if experts == 0:
            result = T.alloc_fragment((block_M, block_N), _OUT_STORAGE[out_dtype])
            round_output(acc, result, out_dtype)
            T.copy(result, out[row, column])
        else:
            store_rounded(acc, out, row, column, rows, out_dtype)

    @T.prim_func
    def main(
        A: T.Tensor((M, stored_K), _A_STORAGE[a_format]),
        A_scale: T.Tensor(scale_shape, scale_dtype),
        W: T.Tensor((groups * N, K // 2), "uint8"),
        W_scale: T.Tensor((groups * N, K // BLOCK), "uint8"),
        out: T.Tensor((M, N), _OUT_STORAGE[out_dtype]),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            row_tile(A, A_scale, W, W_scale, out, 0, by * block_M, 0, None, bx * block_N)

    @T.prim_func
    def grouped(
        A: T.Tensor((M, stored_K), _A_STORAGE[a_format]),
        A_scale: T.Tensor(scale_shape, scale_dtype),
        W: T.Tensor((groups * N, K // 2), "uint8"),
        W_scale: T.Tensor((groups * N, K // BLOCK), "uint8"),
        offsets: T.Tensor((groups + 1,), "int32"),
        out: T.Tensor((M, N), _OUT_STORAGE[out_dtype]),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M) + groups, threads=threads) as (bx, by):
            expert = T.alloc_var("int32")
            row = T.alloc_var("int32")
            rows = T.alloc_var("int32")
            expert, row, rows = group_of_tile(offsets, groups, block_M, by)
            if expert >= 0:
                row_tile(A, A_scale, W, W_scale, out, expert, row, rows, rows, bx * block_N)

    return grouped if experts else main
