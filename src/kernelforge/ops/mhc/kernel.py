"""Hyper-connections forward, as TileLang kernels. Streams are matrices [tokens, n * C]."""

import tilelang.language as T

from ...numerics.row_sum import LANES
from ...numerics.tile.elementary import rsqrt
from ...numerics.tile.row_sum import clear_lanes, column_tile, join_lanes
from ...numerics.tile.scalar import STORAGE, canonical, read, value
from ...numerics.tile.sliced_dot import chunk_length, cut, sliced_dot_accumulate
from ...numerics.tile.streams import collapse_streams, mix_streams
from ..sinkhorn import tile as sinkhorn_tile
from . import tile
from .reference import RANKS, SLICES


def outputs(n, head):
    """Rows of the projection."""
    return n if head else n * (n + 2)


def padded(rows):
    """Rows of a weight tile: what matrix units take."""
    return (rows + 15) // 16 * 16


def mhc_weights(K, rows, threads):
    """The slices of a projection's float32 weights [rows, K] and their exponents (contract C4), chunk by chunk.

    Args:
        K, rows: static.
        threads: schedule.
    """
    length = chunk_length(K, "float32", "float32")
    chunks = T.ceildiv(K, length)
    height = padded(rows)

    @T.prim_func
    def main(
        fn: T.Tensor((rows, K), "float32"),
        slices: T.Tensor((chunks * 3 * height, length), "int8"),
        exponent: T.Tensor((chunks, height), "int32"),
    ):
        with T.Kernel(chunks, threads=threads) as bx:
            w = T.alloc_shared((height, length), "float32")
            cuts = [T.alloc_shared((height, length), "int8") for _ in range(3)]
            exponents = T.alloc_shared((height,), "int32")
            for i, k in T.Parallel(height, length):
                w[i, k] = T.float32(0)
                if i < rows and bx * length + k < K:
                    w[i, k] = fn[i, bx * length + k]
            cut(w, "float32", cuts, exponents)
            T.copy(cuts[0], slices[3 * bx * height, 0])
            T.copy(cuts[1], slices[(3 * bx + 1) * height, 0])
            T.copy(cuts[2], slices[(3 * bx + 2) * height, 0])
            for i in T.Parallel(height):
                exponent[bx, i] = exponents[i]

    return main


def mhc_pre(n, C, head, dtype, iters, eps, norm_eps, block_T, block_C, threads):
    """Projection, gates, Sinkhorn and the collapsed stream, fused; streams are read twice, nothing of their size is
    written.

    Args:
        n, C: streams and channels, static; the number of tokens is dynamic. C is a multiple of 32.
        head: the final collapse, which has ``pre`` alone; ``post`` and ``comb`` are then one unwritten column.
        dtype: "bfloat16" (as bits) | "float32".
        iters, eps, norm_eps: as in the reference.
        block_T, block_C, threads: schedule; never changes a bit.
    """
    tokens = T.dynamic("tokens")
    K, N = n * C, outputs(n, head)
    length = chunk_length(K, "float32", "float32")
    chunks = T.ceildiv(K, length)
    height = padded(N)
    tile_C = column_tile(C, block_C)
    storage = STORAGE[dtype]
    gated = 1 if head else n
    mixed = 1 if head else n * n

    @T.prim_func
    def main(
        x: T.Tensor((tokens, K), storage),
        slices: T.Tensor((chunks * 3 * height, length), "int8"),
        exponent: T.Tensor((chunks, height), "int32"),
        scale: T.Tensor((1 if head else 3,), "float32"),
        base: T.Tensor((N,), "float32"),
        collapsed: T.Tensor((tokens, C), storage),
        post: T.Tensor((tokens, gated), "float32"),
        comb: T.Tensor((tokens, mixed), "float32"),
        raw: T.Tensor((tokens, N), "float32"),
        inverse_rms: T.Tensor((tokens, 1), "float32"),
    ):
        with T.Kernel(T.ceildiv(tokens, block_T), threads=threads) as bx:
            x_tile = T.alloc_shared((block_T, length), storage)
            w = [T.alloc_shared((height, length), "int8") for _ in range(3)]
            exponents = T.alloc_shared((height,), "int32")
            acc = T.alloc_shared((block_T, height), "float32")
            lanes = T.alloc_shared((block_T, LANES), "float32")
            inverse = T.alloc_shared((block_T,), "float32")
            mix = T.alloc_shared((N, block_T), "float32")
            logits = T.alloc_shared((N, block_T), "float32")
            pre_gate = T.alloc_shared((n, block_T), "float32")
            post_gate = T.alloc_shared((n, block_T), "float32")
            m = T.alloc_shared((mixed, block_T), "float32")
            for i, j in T.Parallel(block_T, height):
                acc[i, j] = T.float32(0)
            clear_lanes(lanes)
            for chunk in T.serial(chunks):
                for i, k in T.Parallel(block_T, length):
                    if K % length == 0:
                        x_tile[i, k] = x[T.min(bx * block_T + i, tokens - 1), chunk * length + k]
                    else:
                        x_tile[i, k] = T.cast(0, storage)
                        if chunk * length + k < K:
                            x_tile[i, k] = x[T.min(bx * block_T + i, tokens - 1), chunk * length + k]
                T.copy(slices[3 * chunk * height, 0], w[0])
                T.copy(slices[(3 * chunk + 1) * height, 0], w[1])
                T.copy(slices[(3 * chunk + 2) * height, 0], w[2])
                for i in T.Parallel(height):
                    exponents[i] = exponent[chunk, i]
                sliced_dot_accumulate(acc, x_tile, dtype, w, exponents, N, SLICES, RANKS)
                for i, lane in T.Parallel(block_T, LANES):
                    for part in T.unroll(length // LANES):
                        element = T.alloc_var("float32")
                        element = value(x_tile[i, part * LANES + lane], dtype)
                        lanes[i, lane] = lanes[i, lane] + element * element
            join_lanes(lanes, inverse)
            for i in T.Parallel(block_T):
                inverse[i] = rsqrt(inverse[i] * T.float32(1 / K) + T.float32(norm_eps))
                if bx * block_T + i < tokens:
                    inverse_rms[bx * block_T + i, 0] = inverse[i]
            for i, j in T.Parallel(block_T, N):
                acc[i, j] = canonical(acc[i, j])
                if bx * block_T + i < tokens:
                    raw[bx * block_T + i, j] = acc[i, j]
            tile.mixes(acc, inverse, scale, base, n, mix, logits)
            tile.gates(logits, n, head, eps, pre_gate, post_gate)
            if not head:
                for k, i in T.Parallel(n * n, block_T):
                    m[k, i] = logits[2 * n + k, i]
                sinkhorn_tile.sinkhorn(m, n, iters, eps)
                for i, k in T.Parallel(block_T, n * n):
                    if bx * block_T + i < tokens:
                        comb[bx * block_T + i, k] = canonical(m[k, i])
                for i, j in T.Parallel(block_T, n):
                    if bx * block_T + i < tokens:
                        post[bx * block_T + i, j] = canonical(post_gate[j, i])
            for step in T.serial(C // tile_C):
                collapse_streams(collapsed, x, pre_gate, bx * block_T, step * tile_C, tile_C, n, dtype)

    return main


def mhc_post(n, C, dtype, block_T, block_C, threads):
    """out[k] = post[k] * y + R(n) over j of comb[j, k] * x[j], in one pass.

    Args:
        n, C, dtype, block_T, block_C, threads: as in :func:`mhc_pre`.
    """
    tokens = T.dynamic("tokens")
    tile_C = column_tile(C, block_C)
    storage = STORAGE[dtype]

    @T.prim_func
    def main(
        y: T.Tensor((tokens, C), storage),
        x: T.Tensor((tokens, n * C), storage),
        post: T.Tensor((tokens, n), "float32"),
        comb: T.Tensor((tokens, n * n), "float32"),
        out: T.Tensor((tokens, n * C), storage),
    ):
        with T.Kernel(C // tile_C, T.ceildiv(tokens, block_T), threads=threads) as (bx, by):
            gate = T.alloc_shared((block_T, n), "float32")
            m = T.alloc_shared((block_T, n * n), "float32")
            for i, k in T.Parallel(block_T, n):
                gate[i, k] = read(post[T.min(by * block_T + i, tokens - 1), k])
            for i, k in T.Parallel(block_T, n * n):
                m[i, k] = read(comb[T.min(by * block_T + i, tokens - 1), k])
            mix_streams(out, y, x, gate, m, by * block_T, bx * tile_C, tile_C, n, dtype)

    return main
