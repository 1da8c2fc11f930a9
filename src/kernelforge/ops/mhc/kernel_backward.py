"""Hyper-connections backward, as TileLang kernels. Streams are matrices [tokens, n * C]."""

import tilelang.language as T

from ...numerics.row_sum import LANES
from ...numerics.tile.elementary import sigmoid
from ...numerics.tile.row_sum import clear_lanes, column_tile, join_lanes, ordered_sum
from ...numerics.tile.scalar import STORAGE, canonical, read, stored, value
from ..sinkhorn import tile as sinkhorn_tile
from . import tile
from .kernel import outputs


def mhc_post_backward(n, C, dtype, block_T, block_C, threads):
    """Gradients of y, x, post and comb in one pass over the streams.

    Args:
        n, C, dtype, block_T, block_C, threads: as in :func:`.kernel.mhc_pre`.
    """
    tokens = T.dynamic("tokens")
    storage = STORAGE[dtype]
    tile_C = column_tile(C, block_C)
    dots = n + n * n

    @T.prim_func
    def main(
        grad: T.Tensor((tokens, n * C), storage),
        y: T.Tensor((tokens, C), storage),
        x: T.Tensor((tokens, n * C), storage),
        post: T.Tensor((tokens, n), "float32"),
        comb: T.Tensor((tokens, n * n), "float32"),
        y_grad: T.Tensor((tokens, C), storage),
        x_grad: T.Tensor((tokens, n * C), storage),
        post_grad: T.Tensor((tokens, n), "float32"),
        comb_grad: T.Tensor((tokens, n * n), "float32"),
    ):
        with T.Kernel(T.ceildiv(tokens, block_T), threads=threads) as bx:
            gate = T.alloc_shared((block_T, n), "float32")
            m = T.alloc_shared((block_T, n * n), "float32")
            g = T.alloc_shared((block_T, n * tile_C), "float32")
            streams = T.alloc_shared((block_T, n * tile_C), "float32")
            block = T.alloc_shared((block_T, tile_C), "float32")
            # Row d * block_T + i: dot d of token i, post's n and then comb's n * n.
            lanes = T.alloc_shared((dots * block_T, LANES), "float32")
            sums = T.alloc_shared((dots * block_T,), "float32")
            for i, k in T.Parallel(block_T, n):
                gate[i, k] = read(post[T.min(bx * block_T + i, tokens - 1), k])
            for i, k in T.Parallel(block_T, n * n):
                m[i, k] = read(comb[T.min(bx * block_T + i, tokens - 1), k])
            clear_lanes(lanes)
            for step in T.serial(C // tile_C):
                # One tensor a loop: a compiler can then tell that stores do not change what is loaded. Streams come
                # first: threads then divide tokens and channels evenly, whatever n is.
                for k, i, c in T.Parallel(n, block_T, tile_C):
                    g[i, k * tile_C + c] = value(
                        grad[T.min(bx * block_T + i, tokens - 1), k * C + step * tile_C + c], dtype
                    )
                for k, i, c in T.Parallel(n, block_T, tile_C):
                    streams[i, k * tile_C + c] = value(
                        x[T.min(bx * block_T + i, tokens - 1), k * C + step * tile_C + c], dtype
                    )
                for i, c in T.Parallel(block_T, tile_C):
                    block[i, c] = value(y[T.min(bx * block_T + i, tokens - 1), step * tile_C + c], dtype)
                for i, c in T.Parallel(block_T, tile_C):
                    if bx * block_T + i < tokens:
                        y_grad[bx * block_T + i, step * tile_C + c] = stored(
                            ordered_sum([gate[i, k] * g[i, k * tile_C + c] for k in range(n)]), dtype
                        )
                for j, i, c in T.Parallel(n, block_T, tile_C):
                    if bx * block_T + i < tokens:
                        x_grad[bx * block_T + i, j * C + step * tile_C + c] = stored(
                            ordered_sum([m[i, j * n + k] * g[i, k * tile_C + c] for k in range(n)]), dtype
                        )
                for k, i, lane in T.Parallel(n, block_T, LANES):
                    for part in T.unroll(tile_C // LANES):
                        lanes[k * block_T + i, lane] = (
                            lanes[k * block_T + i, lane]
                            + g[i, k * tile_C + part * LANES + lane] * block[i, part * LANES + lane]
                        )
                for j, k, i, lane in T.Parallel(n, n, block_T, LANES):
                    for part in T.unroll(tile_C // LANES):
                        lanes[(n + j * n + k) * block_T + i, lane] = (
                            lanes[(n + j * n + k) * block_T + i, lane]
                            + streams[i, j * tile_C + part * LANES + lane] * g[i, k * tile_C + part * LANES + lane]
                        )
            join_lanes(lanes, sums)
            for i, k in T.Parallel(block_T, n):
                if bx * block_T + i < tokens:
                    post_grad[bx * block_T + i, k] = sums[k * block_T + i]
            for i, k in T.Parallel(block_T, n * n):
                if bx * block_T + i < tokens:
                    comb_grad[bx * block_T + i, k] = sums[(n + k) * block_T + i]

    return main


def _dot(a, b, first, count, t):
    """R(count) of a[j, t] * b[j, t] from row ``first`` on."""
    return tile.long_sum([a[j, t] * b[j, t] for j in range(first, first + count)])


def mhc_pre_backward(n, C, head, dtype, iters, eps, block_T, block_C, threads):
    """Gradient of the streams, and what the parameters' gradients are summed from.

    ``raw_grad`` [tokens, N] is the gradient of the projection, ``terms`` [tokens, N + scales] that of the logits and
    then each scale's term.

    Args:
        n, C, head, dtype, iters, eps, block_T, block_C, threads: as in :func:`.kernel.mhc_pre`.
    """
    tokens = T.dynamic("tokens")
    K, N = n * C, outputs(n, head)
    tile_C = column_tile(C, block_C)
    storage = STORAGE[dtype]
    scales, gated, mixed = (1, 1, 1) if head else (3, n, n * n)

    @T.prim_func
    def main(
        collapsed_grad: T.Tensor((tokens, C), storage),
        post_grad: T.Tensor((tokens, gated), "float32"),
        comb_grad: T.Tensor((tokens, mixed), "float32"),
        x: T.Tensor((tokens, K), storage),
        fn: T.Tensor((N, K), "float32"),
        scale: T.Tensor((scales,), "float32"),
        base: T.Tensor((N,), "float32"),
        raw: T.Tensor((tokens, N), "float32"),
        inverse_rms: T.Tensor((tokens, 1), "float32"),
        x_grad: T.Tensor((tokens, K), storage),
        raw_grad: T.Tensor((tokens, N), "float32"),
        terms: T.Tensor((tokens, N + scales), "float32"),
    ):
        with T.Kernel(T.ceildiv(tokens, block_T), threads=threads) as bx:
            raw_tile = T.alloc_shared((block_T, N), "float32")
            inverse = T.alloc_shared((block_T,), "float32")
            mix = T.alloc_shared((N, block_T), "float32")
            logits = T.alloc_shared((N, block_T), "float32")
            pre_gate = T.alloc_shared((n, block_T), "float32")
            lanes = T.alloc_shared((n * block_T, LANES), "float32")
            pre_grad = T.alloc_shared((n * block_T,), "float32")
            m = T.alloc_shared((mixed, block_T), "float32")
            g = T.alloc_shared((mixed, block_T), "float32")
            projected = T.alloc_shared((block_T, N), "float32")
            shrink = T.alloc_shared((block_T,), "float32")
            weights = T.alloc_shared((N, tile_C), "float32")
            for i, j in T.Parallel(block_T, N):
                raw_tile[i, j] = raw[T.min(bx * block_T + i, tokens - 1), j]
            for i in T.Parallel(block_T):
                inverse[i] = inverse_rms[T.min(bx * block_T + i, tokens - 1), 0]
            tile.mixes(raw_tile, inverse, scale, base, n, mix, logits)
            clear_lanes(lanes)
            for step in T.serial(C // LANES):
                for j, i, lane in T.Parallel(n, block_T, LANES):
                    lanes[j * block_T + i, lane] = lanes[j * block_T + i, lane] + value(
                        collapsed_grad[T.min(bx * block_T + i, tokens - 1), step * LANES + lane], dtype
                    ) * value(x[T.min(bx * block_T + i, tokens - 1), j * C + step * LANES + lane], dtype)
            join_lanes(lanes, pre_grad)
            if not head:
                for k, i in T.Parallel(n * n, block_T):
                    m[k, i] = logits[2 * n + k, i]
                    g[k, i] = comb_grad[T.min(bx * block_T + i, tokens - 1), k]
                sinkhorn_tile.sinkhorn_backward(g, m, n, iters, eps)
            for j, i in T.Parallel(n, block_T):
                gate = T.alloc_var("float32")
                gate = sigmoid(logits[j, i])
                pre_gate[j, i] = gate + T.float32(eps)
                slope = T.alloc_var("float32")
                slope = gate * (T.float32(1) - gate)
                logits[j, i] = read(read(pre_grad[j * block_T + i]) * read(slope))
                if not head:
                    gate = sigmoid(logits[n + j, i])
                    slope = gate * (T.float32(1) - gate)
                    logits[n + j, i] = read(
                        read(post_grad[T.min(bx * block_T + i, tokens - 1), j]) * read(T.float32(2) * slope)
                    )
            if not head:
                for k, i in T.Parallel(n * n, block_T):
                    logits[2 * n + k, i] = read(canonical(g[k, i]))
            # From here on `logits` holds the gradient of the logits.
            for i in T.Parallel(block_T):
                if bx * block_T + i < tokens:
                    terms[bx * block_T + i, N] = canonical(_dot(logits, mix, 0, n, i))
                    if not head:
                        terms[bx * block_T + i, N + 1] = canonical(_dot(logits, mix, n, n, i))
                        terms[bx * block_T + i, N + 2] = canonical(_dot(logits, mix, 2 * n, n * n, i))
            for j, i in T.Parallel(N, block_T):
                if bx * block_T + i < tokens:
                    terms[bx * block_T + i, j] = logits[j, i]
                logits[j, i] = read(logits[j, i] * read(scale[T.min(j // n, scales - 1)]))
                projected[i, j] = read(logits[j, i] * inverse[i])
                if bx * block_T + i < tokens:
                    raw_grad[bx * block_T + i, j] = projected[i, j]
            for i in T.Parallel(block_T):
                total = T.alloc_var("float32")
                total = read(_dot(logits, mix, 0, N, i))
                shrink[i] = read(read(total * inverse[i]) * T.float32(-1 / K))
            for j in T.serial(n):
                for step in T.serial(C // tile_C):
                    for row, c in T.Parallel(N, tile_C):
                        weights[row, c] = read(fn[row, j * C + step * tile_C + c])
                    for i, c in T.Parallel(block_T, tile_C):
                        if bx * block_T + i < tokens:
                            through = T.alloc_var("float32")
                            through = projected[i, 0] * weights[0, c]
                            for row in T.unroll(1, N):
                                through = through + projected[i, row] * weights[row, c]
                            normalized = T.alloc_var("float32")
                            normalized = read(value(x[bx * block_T + i, j * C + step * tile_C + c], dtype) * inverse[i])
                            direct = T.alloc_var("float32")
                            direct = pre_gate[j, i] * value(collapsed_grad[bx * block_T + i, step * tile_C + c], dtype)
                            x_grad[bx * block_T + i, j * C + step * tile_C + c] = stored(
                                (direct + shrink[i] * normalized) + through, dtype
                            )

    return main


def mhc_weight_gradient(N, K, dtype, block_C, threads):
    """out = start + the sum over tokens of a[t] (outer) x[t], in the written order of the reference.

    ``bounds`` holds the first token of every chunk and the one after its last; a chunk has at most 128.

    Args:
        N, K, dtype, block_C, threads: as in :func:`.kernel.mhc_pre`.
    """
    tokens, chunks = T.dynamic("tokens"), T.dynamic("chunks")
    tile_K = column_tile(K, block_C)
    storage = STORAGE[dtype]

    @T.prim_func
    def main(
        a: T.Tensor((tokens, N), "float32"),
        x: T.Tensor((tokens, K), storage),
        bounds: T.Tensor((chunks, 2), "int32"),
        start: T.Tensor((N, K), "float32"),
        out: T.Tensor((N, K), "float32"),
    ):
        with T.Kernel(K // tile_K, threads=threads) as bx:
            total = T.alloc_shared((N, tile_K), "float32")
            part = T.alloc_shared((N, tile_K), "float32")
            row = T.alloc_shared((tile_K,), "float32")
            factor = T.alloc_shared((N,), "float32")
            T.copy(start[0, bx * tile_K], total)
            for chunk in T.serial(chunks):
                for j, c in T.Parallel(N, tile_K):
                    part[j, c] = T.float32(0)
                for t in T.serial(128):
                    if bounds[chunk, 0] + t < bounds[chunk, 1]:
                        for c in T.Parallel(tile_K):
                            row[c] = value(x[bounds[chunk, 0] + t, bx * tile_K + c], dtype)
                        for j in T.Parallel(N):
                            factor[j] = read(a[bounds[chunk, 0] + t, j])
                        for j, c in T.Parallel(N, tile_K):
                            part[j, c] = part[j, c] + factor[j] * row[c]
                for j, c in T.Parallel(N, tile_K):
                    total[j, c] = total[j, c] + part[j, c]
            for j, c in T.Parallel(N, tile_K):
                out[j, bx * tile_K + c] = canonical(total[j, c])

    return main


def mhc_token_sum(N, threads):
    """out = start + the sum over tokens of a[t], in the written order of the reference; ``bounds`` as in
    :func:`mhc_weight_gradient`."""
    tokens, chunks = T.dynamic("tokens"), T.dynamic("chunks")

    @T.prim_func
    def main(
        a: T.Tensor((tokens, N), "float32"),
        bounds: T.Tensor((chunks, 2), "int32"),
        start: T.Tensor((1, N), "float32"),
        out: T.Tensor((1, N), "float32"),
    ):
        with T.Kernel(1, threads=threads) as bx:
            total = T.alloc_shared((N,), "float32")
            part = T.alloc_shared((N,), "float32")
            for j in T.Parallel(N):
                total[j] = start[bx, j]
            for chunk in T.serial(chunks):
                for j in T.Parallel(N):
                    part[j] = T.float32(0)
                for t in T.serial(128):
                    if bounds[chunk, 0] + t < bounds[chunk, 1]:
                        for j in T.Parallel(N):
                            part[j] = part[j] + a[bounds[chunk, 0] + t, j]
                for j in T.Parallel(N):
                    total[j] = total[j] + part[j]
            for j in T.Parallel(N):
                out[bx, j] = canonical(total[j])

    return main
