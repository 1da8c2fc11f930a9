"""Lightning indexer: the reference, which defines the bits.

Arrays are NumPy; bfloat16 travels as uint16 bits. For query s, head h and entry t

    score[s, t] = R(H) over h of weights[s, h] * relu(q[s, h] . k[t])

where the dot is contract C3's (packed FP4) or C4's (bfloat16, whole rows) and R(H) is C7's; the scores are rounded
to bfloat16, and the entries with the largest ones are chosen by C9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16, mx
from ...numerics import window
from ...numerics.block_accumulate import mx_block_accumulate
from ...numerics.row_sum import LANES, row_sum

SMALLEST_PRODUCT = np.float32(2.0**-100)
"""Smaller weighted dots are +0."""

ABSENT = -1
"""The index where fewer entries are visible than are asked for; its score is -Inf."""

MINUS_INFINITY = 0xFF80
"""bfloat16 bits."""


def bf16_dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Contract C4 on whole rows: float32 [M, N] of [M, L] and [N, L]; NaN where a row is not finite."""
    usable_a, usable_b = (np.isfinite(x).all(-1, keepdims=True) for x in (a, b))
    windows = [window.window(np.where(usable, mx.flush(x), 0)) for x, usable in ((a, usable_a), (b, usable_b))]
    return np.where(usable_a & usable_b.T, window.sliced_dot(*windows), np.float32(np.nan))


def dots(
    q: NDArray[Any], q_scale: NDArray[np.uint8] | None, k: NDArray[Any], k_scale: NDArray[np.uint8] | None
) -> NDArray[np.float32]:
    """q[s, h] . k[t], float32 [S, H, T].

    Args:
        q: packed E2M1 uint8 [S, H, D/2]; ``q_scale`` E8M0 bytes [S, H, D/32]. Or bfloat16 bits [S, H, D] and None.
        k: packed E2M1 uint8 [T, D/2]; ``k_scale`` E8M0 bytes [T, D/32]. Or bfloat16 bits [T, D] and None.
    """
    S, H, width = q.shape
    rows = q.reshape(S * H, width)
    if q_scale is None or k_scale is None:
        return bf16_dot(bf16.decode(rows), bf16.decode(k)).reshape(S, H, k.shape[0])
    zeros = np.zeros((S * H, k.shape[0]), np.float32)
    scales = q_scale.reshape(S * H, q_scale.shape[-1])
    return mx_block_accumulate(zeros, rows, scales, k, k_scale, "e2m1").reshape(S, H, k.shape[0])


def weighted_head_sum(products: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """R(H) of weights * relu(products): float32 [S, H, T] and [S, H] to [S, T].

    relu keeps NaN. Weights below 2^-50 in magnitude read as +0, weighted dots below 2^-100 are +0.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        positive = np.where(np.isnan(products) | (products > 0), products, np.float32(0))
        weighted = mx.flush(weights)[..., None] * positive
        weighted = np.where(np.abs(weighted) < SMALLEST_PRODUCT, np.float32(0), weighted)
    return row_sum(np.ascontiguousarray(np.moveaxis(weighted, 1, -1)))


def indexer_scores(
    q: NDArray[Any],
    q_scale: NDArray[np.uint8] | None,
    k: NDArray[Any],
    k_scale: NDArray[np.uint8] | None,
    weights: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The scores before rounding, float32 [S, T]; operands as in :func:`dots`, weights float32 [S, H]."""
    return weighted_head_sum(dots(q, q_scale, k, k_scale), weights)


def top_k(
    scores: NDArray[np.uint16], visible: NDArray[np.integer], count: int
) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """The ``count`` largest scores of each row: larger score first, of equal ones the lower index first; NaN above all.

    Args:
        scores: bfloat16 bits [S, T], one NaN, no -0.
        visible: how many entries from the first a row may choose from; beyond T, all T.
        count: how many to choose.

    Returns:
        Indices int32 [S, count] in that order, -1 where fewer are visible; scores, bfloat16 bits, -Inf there.
    """
    index = np.full((scores.shape[0], count), ABSENT, np.int32)
    chosen = np.full((scores.shape[0], count), MINUS_INFINITY, np.uint16)
    for row, seen in enumerate(visible):
        bits = scores[row, : max(int(seen), 0)]
        value = bf16.decode(bits)
        rank = np.where(np.isnan(value), np.float64(np.inf), value.astype(np.float64))
        # Keys from the last to the first: index, score, NaN before anything else.
        order = np.lexsort((np.arange(bits.size), -rank, ~np.isnan(value)))[:count]
        index[row, : order.size] = order
        chosen[row, : order.size] = bits[order]
    return index, chosen


def lightning_indexer(
    q: NDArray[Any],
    q_scale: NDArray[np.uint8] | None,
    k: NDArray[Any],
    k_scale: NDArray[np.uint8] | None,
    weights: NDArray[np.float32],
    topk: int,
    kv_len: NDArray[np.integer],
) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Indices int32 [S, topk] and scores, bfloat16 bits [S, topk], of one sequence; see :func:`top_k`."""
    return top_k(bf16.encode(indexer_scores(q, q_scale, k, k_scale, weights)), kv_len, topk)


def indexer_logits(
    q: NDArray[Any],
    q_scale: NDArray[np.uint8] | None,
    k: NDArray[Any],
    k_scale: NDArray[np.uint8] | None,
    weights: NDArray[np.float32],
    kv_len: NDArray[np.integer],
    out_dtype: str = "bfloat16",
) -> NDArray[Any]:
    """Scores of one sequence [S, T], float32 or bfloat16 bits; -Inf at entries a query does not see."""
    scores = indexer_scores(q, q_scale, k, k_scale, weights)
    scores = np.where(np.arange(k.shape[0]) < np.asarray(kv_len)[:, None], scores, np.float32(-np.inf))
    return scores if out_dtype == "float32" else bf16.encode(scores)


def _cut(x: NDArray[np.float32], slices: int) -> tuple[window.Window, NDArray[np.bool_]]:
    """Windows of the rows of ``x`` as read, and which rows are finite, [M, 1]; the others' integers are 0."""
    usable = np.asarray(np.isfinite(x).all(-1, keepdims=True))
    return window.window(np.where(usable, mx.flush(x), np.float32(0)), slices), usable


def _masked_dot(
    row: NDArray[np.float32], slices: int, keep: NDArray[np.bool_], columns: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Contract C4: ``row`` [L], where ``keep`` [M, L] says so, times ``columns`` [L, N]; float32 [M, N].

    The row is cut whole, so its exponent does not depend on ``keep``.
    """
    (a, a_usable), (b, b_usable) = _cut(row[None], slices), _cut(np.ascontiguousarray(columns.T), 2)
    masked = window.Window(a.q * keep, np.repeat(a.exponent, len(keep)), slices)
    return np.where(a_usable & b_usable.T, window.sliced_dot(masked, b), np.float32(np.nan))


def _limited_product(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """fl(x * y), +0 below 2^-100."""
    found = x * y
    return np.where(np.abs(found) < SMALLEST_PRODUCT, np.float32(0), found)


def _values(x: NDArray[Any], scale: NDArray[np.uint8] | None) -> NDArray[np.float32]:
    return bf16.decode(x) if scale is None else mx.dequantize_mxfp4(x, scale)


def indexer_logits_backward(
    grad: NDArray[np.float32],
    q: NDArray[Any],
    q_scale: NDArray[np.uint8] | None,
    k: NDArray[Any],
    k_scale: NDArray[np.uint8] | None,
    weights: NDArray[np.float32],
    kv_len: NDArray[np.integer],
    grad_dtype: str = "bfloat16",
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.float32]]:
    """Gradients of q and k, bfloat16 bits [S, H, D] and [T, D], and of weights, float32 [S, H], of one sequence.

    Args:
        grad: of the logits, float32 [S, T], values of ``grad_dtype``; what a query does not see counts for nothing.
        others: as in :func:`indexer_logits`.
    """
    products, (S, H) = dots(q, q_scale, k, k_scale), weights.shape
    q_values, k_values = _values(q, q_scale), _values(k, k_scale)
    g, w, T = mx.flush(grad), mx.flush(weights), len(k)
    passes = np.isnan(products) | (products > 0)
    dq, dk = np.zeros(q_values.shape, np.float32), np.zeros(k_values.shape, np.float32)
    dweights = np.zeros((S, H), np.float32)
    with np.errstate(all="ignore"):
        for s, seen in enumerate(np.clip(kv_len, 0, T)):
            terms = np.zeros((H, -(-T // LANES) * LANES), np.float32)
            terms[:, :seen] = _limited_product(g[s, :seen], np.where(passes[s], products[s], np.float32(0))[:, :seen])
            dweights[s] = row_sum(terms)
            total = np.zeros(dq[s].shape, np.float32)
            for first in range(0, int(seen), window.CHUNK):
                part = slice(first, min(first + window.CHUNK, int(seen)))
                slices = 2 if grad_dtype == "bfloat16" else 3
                total = total + _masked_dot(grad[s, part], slices, passes[s, :, part], k_values[part])
            dq[s] = _limited_product(w[s, :, None], total)
            share = _masked_dot(weights[s], 3, passes[s].T, q_values[s])
            dk[:seen] = dk[:seen] + _limited_product(g[s, :seen, None], share[:seen])
    return bf16.encode(dq), bf16.encode(dk), dweights
