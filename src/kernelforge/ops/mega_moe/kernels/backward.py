"""Backward of the expert layer: the products of contract C4 it needs, and the activation's gradient."""

import tilelang.language as T

from ....formats.tile import bf16
from ....formats.tile.integer import canonical_bits
from ....numerics.tile.elementary import sigmoid, silu
from ....numerics.tile.row_sum import accumulate_lanes, clear_lanes, join_lanes
from ....numerics.tile.scalar import bits_of, read
from ....numerics.tile.sliced_dot import cut, sliced_dot_accumulate

CHUNK = 128
"""Elements of a contraction under one exponent."""


@T.macro
def _load_columns(source, first, column, rows, columns, tile):
    """tile[j, c] = source[first + c, column + j]; zeros beyond the source."""
    for j, c in T.Parallel(tile.shape[0], CHUNK):
        value = T.alloc_var("uint16")
        value = T.cast(0, "uint16")
        if first + c < rows and column + j < columns:
            value = source[first + c, column + j]
        tile[j, c] = value


@T.macro
def _load_rows(source, row, first, rows, columns, tile):
    """tile[i, c] = source[row + i, first + c]; zeros beyond the source."""
    for i, c in T.Parallel(tile.shape[0], CHUNK):
        value = T.alloc_var("uint16")
        value = T.cast(0, "uint16")
        if row + i < rows and first + c < columns:
            value = source[row + i, first + c]
        tile[i, c] = value


@T.macro
def _accumulate(acc, x, w):
    """acc[i, j] += the dot of one chunk, row i of ``x`` with row j of ``w``; bfloat16 bits."""
    slices = [T.alloc_shared(w.shape, "int8") for _ in range(2)]
    exponents = T.alloc_shared((w.shape[0],), "int32")
    cut(w, "bfloat16", slices, exponents)
    sliced_dot_accumulate(acc, x, "bfloat16", slices, exponents, w.shape[0])


@T.macro
def _store(acc, row, column, rows, columns, out):
    for i, j in T.Parallel(acc.shape[0], acc.shape[1]):
        if row + i < rows and column + j < columns:
            bits = T.alloc_var("int32")
            bits = bits_of(acc[i, j])
            out[row + i, column + j] = T.reinterpret(canonical_bits(bits), "float32")


def moe_input_product(N, K, block_M, block_N, threads):
    """out[M, N] = A[M, K] B[K, N], bfloat16 bits to float32, chunks of 128 along K.

    Args:
        N, K: static extents; M is dynamic.
        block_M, block_N, threads: schedule; never changes a bit.
    """
    M = T.dynamic("M")

    @T.prim_func
    def main(A: T.Tensor((M, K), "uint16"), B: T.Tensor((K, N), "uint16"), out: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            x = T.alloc_shared((block_M, CHUNK), "uint16")
            w = T.alloc_shared((block_N, CHUNK), "uint16")
            acc = T.alloc_shared((block_M, block_N), "float32")
            T.clear(acc)
            for k in T.serial(T.ceildiv(K, CHUNK)):
                _load_rows(A, by * block_M, k * CHUNK, M, K, x)
                _load_columns(B, k * CHUNK, bx * block_N, K, N, w)
                _accumulate(acc, x, w)
            _store(acc, by * block_M, bx * block_N, M, N, out)

    return main


def moe_weight_product(M, N, block_M, block_N, threads):
    """out[M, N] = A[R, M]^T B[R, N], bfloat16 bits to float32, chunks of 128 along the rows R.

    Args:
        M, N: static extents; R is dynamic.
        block_M, block_N, threads: schedule; never changes a bit.
    """
    R = T.dynamic("R")

    @T.prim_func
    def main(A: T.Tensor((R, M), "uint16"), B: T.Tensor((R, N), "uint16"), out: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            x = T.alloc_shared((block_M, CHUNK), "uint16")
            w = T.alloc_shared((block_N, CHUNK), "uint16")
            acc = T.alloc_shared((block_M, block_N), "float32")
            T.clear(acc)
            for k in T.serial(T.ceildiv(R, CHUNK)):
                _load_columns(A, k * CHUNK, by * block_M, R, M, x)
                _load_columns(B, k * CHUNK, bx * block_N, R, N, w)
                _accumulate(acc, x, w)
            _store(acc, by * block_M, bx * block_N, M, N, out)

    return main


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
