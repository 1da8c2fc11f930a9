"""Compression backward, as TileLang kernels: per entry, per token, and the sums over entries.

Nothing but the inputs is kept from the forward pass; the softmax is computed again. Every token and channel is a slot
of one entry at most, so gradients of tokens are written once. Those of the weights are summed over chunks of 32 entries
of a sequence, and then over the chunks.
"""

import tilelang.language as T

from ...numerics.tile.row_sum import column_tile, row_sum
from ...numerics.tile.scalar import STORAGE, canonical, read, stored, value
from . import tile
from .pool import of_window

TOP, SHARE, MEAN, SLOPE, TERM = range(5)
"""Rows of what is known of an entry: the largest logit, one over the sum of the weights, the weighted mean, the
gradient of that mean, the entry's term of the gradient of norm_weight."""


def entry_gradient(ratio, overlap, D, pairs, eps, dtype, block_C, threads):
    """known[e, :, :] of every entry, from the gradient of the entries.

    Args: as in :func:`kernelforge.ops.compress.kernel.compress`.
    """
    rows, batch, positions, total = T.dynamic("rows"), T.dynamic("batch"), T.dynamic("positions"), T.dynamic("total")
    series = 2 if overlap else 1
    slots = series * ratio
    tile_C = column_tile(D, block_C)
    storage = STORAGE[dtype]

    @T.prim_func
    def main(
        grad: T.Tensor((total, D), storage),
        kv: T.Tensor((rows, series * D), storage),
        gate: T.Tensor((rows, series * D), storage),
        position_bias: T.Tensor((ratio, series * D), "float32"),
        norm_weight: T.Tensor((D,), "float32"),
        cos: T.Tensor((positions, pairs), "float32"),
        sin: T.Tensor((positions, pairs), "float32"),
        length: T.Tensor((batch,), "int32"),
        known: T.Tensor((total, 5, D), "float32"),
    ):
        with T.Kernel(total, threads=threads) as bx:
            bias = T.alloc_shared((slots, tile_C), "float32")
            z = T.alloc_shared((slots, tile_C), "float32")
            v = T.alloc_shared((slots, tile_C), "float32")
            top = T.alloc_shared((tile_C,), "float32")
            share = T.alloc_shared((tile_C,), "float32")
            mean = T.alloc_shared((tile_C,), "float32")
            pooled = T.alloc_shared((1, D), "float32")
            slope = T.alloc_shared((1, D), "float32")
            product = T.alloc_shared((1, D), "float32")
            inverse = T.alloc_shared((1,), "float32")
            common = T.alloc_shared((1,), "float32")
            angles = T.alloc_shared((3, 2 * pairs), "float32")
            b = T.alloc_var("int32")
            window = T.alloc_var("int32")
            first_row = T.alloc_var("int32")
            column = T.alloc_var("int32")
            b = bx // (total // batch)
            window = bx % (total // batch)
            first_row = b * (rows // batch)
            if (window + 1) * ratio <= length[b]:
                for part in T.serial(D // tile_C):
                    column = part * tile_C
                    with of_window(
                        "known_mean",
                        (mean, top, share),
                        (kv, gate, position_bias),
                        (first_row, window, column),
                        ratio,
                        series,
                        D,
                        dtype,
                    ):
                        tile.load_bias(position_bias, part * tile_C, ratio, D, bias)
                        first = T.max((series - 1 - window) * ratio, 0)
                        row = first_row + (window + 1 - series) * ratio
                        tile.load_new_slots((kv, gate, bias), (row, first, part * tile_C), ratio, D, dtype, v, z)
                        tile.pool(v, z, first, top, share, mean)
                    for c in T.Parallel(tile_C):
                        pooled[0, part * tile_C + c] = mean[c]
                        known[bx, TOP, part * tile_C + c] = top[c]
                        known[bx, SHARE, part * tile_C + c] = share[c]
                        known[bx, MEAN, part * tile_C + c] = mean[c]
                tile.inverse_rms(pooled, product, inverse, eps)
                for c in T.Parallel(D):
                    slope[0, c] = value(grad[bx, c], dtype)
                tile.turn(slope, cos, sin, window * ratio, -1.0, angles)
                for c in T.Parallel(D):
                    pooled[0, c] = read(pooled[0, c] * inverse[0])
                    known[bx, TERM, c] = slope[0, c] * pooled[0, c]
                    slope[0, c] = read(slope[0, c] * read(norm_weight[c]))
                    product[0, c] = slope[0, c] * pooled[0, c]
                row_sum(product, common)
                for k in T.Parallel(1):
                    common[k] = read(common[k] * T.float32(1 / D))
                for c in T.Parallel(D):
                    known[bx, SLOPE, c] = read(read(slope[0, c] - pooled[0, c] * common[0]) * inverse[0])

    return main


def token_gradient(ratio, overlap, D, chunk, dtype, block_C, threads):
    """Gradients of kv and gate, and of position_bias and norm_weight chunk by chunk.

    Args:
        chunk: entries per chunk; part of the definition.
        ratio, overlap, D, dtype, block_C, threads: as in :func:`entry_gradient`.
    """
    rows, batch, parts, total = T.dynamic("rows"), T.dynamic("batch"), T.dynamic("parts"), T.dynamic("total")
    series = 2 if overlap else 1
    slots = series * ratio
    tile_C = column_tile(D, block_C)
    storage = STORAGE[dtype]

    @T.prim_func
    def main(
        kv: T.Tensor((rows, series * D), storage),
        gate: T.Tensor((rows, series * D), storage),
        position_bias: T.Tensor((ratio, series * D), "float32"),
        length: T.Tensor((batch,), "int32"),
        known: T.Tensor((total, 5, D), "float32"),
        kv_grad: T.Tensor((rows, series * D), storage),
        gate_grad: T.Tensor((rows, series * D), storage),
        sums: T.Tensor((parts, slots + 1, D), "float32"),
    ):
        with T.Kernel(D // tile_C, parts, threads=threads) as (bx, by):
            bias = T.alloc_shared((slots, tile_C), "float32")
            z = T.alloc_shared((slots, tile_C), "float32")
            v = T.alloc_shared((slots, tile_C), "float32")
            acc = T.alloc_shared((slots + 1, tile_C), "float32")
            top = T.alloc_shared((tile_C,), "float32")
            share = T.alloc_shared((tile_C,), "float32")
            mean = T.alloc_shared((tile_C,), "float32")
            slope = T.alloc_shared((tile_C,), "float32")
            b = T.alloc_var("int32")
            window = T.alloc_var("int32")
            first = T.alloc_var("int32")
            first_row = T.alloc_var("int32")
            column = T.alloc_var("int32")
            b = by // (parts // batch)
            first_row = b * (rows // batch)
            column = bx * tile_C
            tile.load_bias(position_bias, bx * tile_C, ratio, D, bias)
            for j, c in T.Parallel(slots + 1, tile_C):
                acc[j, c] = T.float32(0)
            for i in T.serial(chunk):
                window = by % (parts // batch) * chunk + i
                first = T.max((series - 1 - window) * ratio, 0)
                if (window < total // batch) & ((window + 1) * ratio <= length[b]):
                    for c in T.Parallel(tile_C):
                        entry = T.min(b * (total // batch) + window, total - 1)
                        top[c] = known[entry, TOP, bx * tile_C + c]
                        share[c] = known[entry, SHARE, bx * tile_C + c]
                        mean[c] = known[entry, MEAN, bx * tile_C + c]
                        slope[c] = known[entry, SLOPE, bx * tile_C + c]
                        acc[slots, c] = acc[slots, c] + known[entry, TERM, bx * tile_C + c]
                    with of_window(
                        "mean_gradient",
                        (acc, kv_grad, gate_grad, top, share, mean, slope),
                        (kv, gate, position_bias),
                        (first_row, window, column),
                        ratio,
                        series,
                        D,
                        dtype,
                    ):
                        row = first_row + (window + 1 - series) * ratio
                        tile.load_new_slots((kv, gate, bias), (row, first, bx * tile_C), ratio, D, dtype, v, z)
                        for j, c in T.Parallel(slots, tile_C):
                            z[j, c] = read(tile.weight(z[j, c], top[c]) * share[c] * slope[c])
                            v[j, c] = T.if_then_else(j < first, T.float32(0), z[j, c] * read(v[j, c] - mean[c]))
                            acc[j, c] = acc[j, c] + v[j, c]
                        for j, c in T.Parallel(slots, tile_C):
                            if j >= first:
                                kv_grad[row + j, j // ratio * D + bx * tile_C + c] = stored(z[j, c], dtype)
                                gate_grad[row + j, j // ratio * D + bx * tile_C + c] = stored(v[j, c], dtype)
            for j, c in T.Parallel(slots + 1, tile_C):
                sums[by, j, bx * tile_C + c] = acc[j, c]

    return main


def sum_of_parts(D, block_C, threads):
    """out[j, c] = the sum over parts of sums[part * rows + j, c], ascending from +0.

    Args:
        D: channels.
        block_C, threads: schedule.
    """
    terms, rows = T.dynamic("terms"), T.dynamic("rows")
    tile_C = column_tile(D, block_C)

    @T.prim_func
    def main(sums: T.Tensor((terms, D), "float32"), out: T.Tensor((rows, D), "float32")):
        with T.Kernel(D // tile_C, rows, threads=threads) as (bx, by):
            for c in T.Parallel(tile_C):
                total = T.alloc_var("float32")
                total = T.float32(0)
                for part in T.serial(terms // rows):
                    # Always inside; said so that the compiler need not check every element.
                    term = T.max(T.min(part * rows + by, terms - 1), 0)
                    total = total + sums[term, bx * tile_C + c]
                out[by, bx * tile_C + c] = canonical(total)

    return main
