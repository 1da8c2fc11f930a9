"""Compression forward and the update of its state, as TileLang kernels.

Sequences are [B * S, channels] matrices; which row belongs to which sequence follows from the extents. The state of one
sequence is ``ratio`` rows, row s for the tokens at positions congruent to s: with overlap first the a-series of the
window before, then the unfinished window.
"""

import numpy as np
import tilelang.language as T

from ...numerics.tile.composite import composite
from ...numerics.tile.row_sum import column_tile
from ...numerics.tile.scalar import STORAGE, read, stored
from . import tile
from .pool import part_rows, pool_new


def compress(ratio, overlap, D, pairs, eps, dtype, block_N, block_C, threads):
    """entries[b * N + i] = the i-th entry that sequence b completes with these tokens; zeros beyond the last.

    Args:
        ratio: tokens per window.
        overlap: two series of channels and 2 * ratio slots (CSA), or one (HCA).
        D: channels of an entry, a multiple of 32.
        pairs: of trailing channels that are turned.
        eps: of the RMS normalization.
        dtype: of kv, gate and entries: "bfloat16" (as bits) | "float32".
        block_N, block_C, threads: schedule; never changes a bit.
    """
    rows, batch, positions, total = T.dynamic("rows"), T.dynamic("batch"), T.dynamic("positions"), T.dynamic("total")
    series = 2 if overlap else 1
    slots = series * ratio
    kept = (2 * series - 1) * D
    tile_C = column_tile(D, block_C)
    storage = STORAGE[dtype]

    @T.prim_func
    def main(
        kv: T.Tensor((rows, series * D), storage),
        gate: T.Tensor((rows, series * D), storage),
        position_bias: T.Tensor((ratio, series * D), "float32"),
        norm_weight: T.Tensor((D,), "float32"),
        cos: T.Tensor((positions, pairs), "float32"),
        sin: T.Tensor((positions, pairs), "float32"),
        old_kv: T.Tensor((batch, ratio, kept), storage),
        old_gate: T.Tensor((batch, ratio, kept), storage),
        position: T.Tensor((batch,), "int32"),
        length: T.Tensor((batch,), "int32"),
        entries: T.Tensor((total, D), storage),
    ):
        with T.Kernel(T.ceildiv(total, block_N), threads=threads) as bx:
            bias = T.alloc_shared((slots, tile_C), "float32")
            z = T.alloc_shared((slots, tile_C), "float32")
            v = T.alloc_shared((slots, tile_C), "float32")
            top = T.alloc_shared((tile_C,), "float32")
            share = T.alloc_shared((tile_C,), "float32")
            mean = T.alloc_shared((tile_C,), "float32")
            sums = T.alloc_shared((part_rows(slots), tile_C), "float32")
            pooled = T.alloc_shared((block_N, D), "float32")
            entry = T.alloc_shared((1, D), "float32")
            square = T.alloc_shared((1, D), "float32")
            inverse = T.alloc_shared((1,), "float32")
            angles = T.alloc_shared((3, 2 * pairs), "float32")
            b = T.alloc_var("int32")
            window = T.alloc_var("int32")
            start = T.alloc_var("int32")
            end = T.alloc_var("int32")
            first_row = T.alloc_var("int32")
            row = T.alloc_var("int32")
            at = T.alloc_var("int32")
            for part in T.serial(D // tile_C):
                for i in T.serial(block_N):
                    if bx * block_N + i < total:
                        b = (bx * block_N + i) // (total // batch)
                        start = position[b]
                        end = start + length[b]
                        window = start // ratio + (bx * block_N + i) % (total // batch)
                        first_row = b * (rows // batch) - start
                        if (window + 1) * ratio <= end:
                            token = (window + 1 - series) * ratio
                            if (token >= start) & (rows > 0):
                                pool_new(
                                    kv,
                                    gate,
                                    position_bias,
                                    first_row + token,
                                    part * tile_C,
                                    ratio,
                                    D,
                                    dtype,
                                    bias,
                                    v,
                                    z,
                                    sums,
                                    top,
                                    share,
                                    mean,
                                )
                            else:
                                tile.load_bias(position_bias, part * tile_C, ratio, D, bias)
                                tile.load_slots(
                                    kv,
                                    gate,
                                    bias,
                                    old_kv,
                                    old_gate,
                                    first_row,
                                    b,
                                    token,
                                    start,
                                    part * tile_C,
                                    ratio,
                                    series,
                                    D,
                                    dtype,
                                    v,
                                    z,
                                )
                                tile.pool(v, z, T.max((series - 1 - window) * ratio, 0), top, share, mean)
                            for c in T.Parallel(tile_C):
                                pooled[i, part * tile_C + c] = mean[c]
            for i in T.serial(block_N):
                if bx * block_N + i < total:
                    b = (bx * block_N + i) // (total // batch)
                    start = position[b]
                    end = start + length[b]
                    window = start // ratio + (bx * block_N + i) % (total // batch)
                    if (window + 1) * ratio <= end:
                        for c in T.Parallel(D):
                            entry[0, c] = pooled[i, c]
                        row = bx * block_N + i
                        at = window * ratio
                        with composite(
                            "finished_entry",
                            *(entries, entry, norm_weight, cos, sin, row.buffer, at.buffer),
                            ratio=ratio,
                            eps=int(np.float32(eps).view(np.int32)),
                            wide=int(dtype == "float32"),
                        ):
                            tile.inverse_rms(entry, square, inverse, eps)
                            for c in T.Parallel(D):
                                entry[0, c] = read(read(entry[0, c] * inverse[0]) * read(norm_weight[c]))
                            tile.turn(entry, cos, sin, at, 1.0, angles)
                            for c in T.Parallel(D):
                                entries[row, c] = stored(entry[0, c], dtype)
                    else:
                        for c in T.Parallel(D):
                            entries[bx * block_N + i, c] = T.cast(0, storage)

    return main


def compress_state(ratio, overlap, D, dtype, block_C, threads):
    """Put what the next call needs of these tokens into the state, in place.

    Args: as in :func:`compress`.
    """
    rows, batch = T.dynamic("rows"), T.dynamic("batch")
    series = 2 if overlap else 1
    width = series * D
    kept = (2 * series - 1) * D
    tile_C = column_tile(D, block_C)
    storage = STORAGE[dtype]

    @T.prim_func
    def main(
        kv: T.Tensor((rows, width), storage),
        gate: T.Tensor((rows, width), storage),
        position: T.Tensor((batch,), "int32"),
        length: T.Tensor((batch,), "int32"),
        state_kv: T.Tensor((batch, ratio, kept), storage),
        state_gate: T.Tensor((batch, ratio, kept), storage),
    ):
        with T.Kernel(D // tile_C, batch, threads=threads) as (bx, by):
            start = T.alloc_var("int32")
            end = T.alloc_var("int32")
            window = T.alloc_var("int32")
            first_row = T.alloc_var("int32")
            start = position[by]
            end = start + length[by]
            window = end // ratio * ratio
            first_row = by * (rows // batch) - start
            for s, c in T.Parallel(ratio, tile_C):
                at = bx * tile_C + c
                if overlap:
                    if window - ratio + s >= start:
                        state_kv[by, s, at] = kv[first_row + window - ratio + s, at]
                        state_gate[by, s, at] = gate[first_row + window - ratio + s, at]
                    else:
                        if window > start // ratio * ratio:
                            state_kv[by, s, at] = state_kv[by, s, D + at]
                            state_gate[by, s, at] = state_gate[by, s, D + at]
                if (window + s >= start) & (window + s < end):
                    for part in T.unroll(series):
                        state_kv[by, s, (series - 1 + part) * D + at] = kv[first_row + window + s, part * D + at]
                        state_gate[by, s, (series - 1 + part) * D + at] = gate[first_row + window + s, part * D + at]

    return main
