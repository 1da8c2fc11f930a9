"""Choice of experts in NumPy: these functions define the bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16, mx
from ...numerics.elementary import exp, recip, recip_positive, rsqrt, sigmoid, softplus
from ...numerics.row_sum import row_sum

Float32 = NDArray[np.float32]
Indices = NDArray[np.int32]


def scores(logits: Float32, score: str) -> Float32:
    """Scores of float32 logits [T, E], each read by C1 (below 2^-50: +0).

    ``sqrtsoftplus``: y * rsqrt(y) of y = softplus(x), +0 where y reads as zero. ``sigmoid``. ``softmax``: exp(x - max)
    times the reciprocal of the row sum R(E); the maximum is taken by comparing, ascending, and a NaN is never greater.
    """
    x = mx.flush(logits)
    with np.errstate(all="ignore"):
        if score == "sqrtsoftplus":
            y = mx.flush(softplus(x))
            return mx.flush(np.where(y == 0, np.float32(0), y * rsqrt(y)))
        if score == "sigmoid":
            return mx.flush(sigmoid(x))
        top = x[:, 0]
        for expert in range(1, x.shape[1]):
            top = np.where(x[:, expert] > top, x[:, expert], top)
        e = exp(x - top[:, None])
        return mx.flush(e * recip_positive(row_sum(e))[:, None])


def ranks(ranked: Float32) -> NDArray[np.int64]:
    """Integers that order values as a selection does: NaN before everything, -0 and +0 alike."""
    bits = bf16.canonical(ranked).view(np.int32).astype(np.int64)
    ordered = np.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    return np.where(np.isnan(ranked), np.int64(-(2**31)), ordered)


def select(ranked: Float32, k: int) -> Indices:
    """int32 [T, k]: experts by (value descending, index ascending); float32 values, NaN last."""
    return np.argsort(-ranks(ranked), axis=-1, kind="stable")[:, :k].astype(np.int32)


def weights(found: Float32, chosen: Indices, renormalize: bool, scale: float) -> Float32:
    """Weights [T, k] of the chosen experts from their scores [T, E].

    Renormalized: score * recip(total), total the sum in slot order from +0; 0 where the total is 0; read by C1. Then
    times ``scale``.
    """
    slots = np.take_along_axis(found, chosen.astype(np.int64), -1)
    with np.errstate(all="ignore"):
        if renormalize:
            total = _added(slots)
            shares = slots * recip(total)[:, None]
            slots = mx.flush(np.where(total[:, None] == 0, np.float32(0), shares))
        return bf16.canonical(slots * np.float32(scale))


def route_topk(
    logits: Float32,
    bias: Float32 | None,
    k: int,
    score: str = "sqrtsoftplus",
    renormalize: bool = True,
    scale: float = 1.0,
    chosen: Indices | None = None,
) -> tuple[Indices, Float32]:
    """Experts and weights of each token; ``chosen`` [T, k] fixes the experts (hash routing), and bias is not used."""
    found = scores(logits, score)
    if chosen is None:
        with np.errstate(all="ignore"):
            chosen = select(found if bias is None else found + mx.flush(bias), k)
    return chosen, weights(found, chosen, renormalize, scale)


def _added(terms: Float32) -> Float32:
    """float32 [T]: the columns of [T, k] added ascending from +0."""
    total = np.zeros(terms.shape[0], np.float32)
    for slot in range(terms.shape[1]):
        total = total + terms[:, slot]
    return total


def slopes(logits: Float32, found: Float32, score: str) -> Float32:
    """Derivatives of ``sqrtsoftplus`` or ``sigmoid`` scores by their logits, [T, E], read by C1.

    sigmoid(-x) is what 1 - sigmoid(x) would be without its cancellation.
    """
    x = mx.flush(logits)
    if score == "sigmoid":
        return mx.flush(found * mx.flush(sigmoid(-x)))
    y = mx.flush(softplus(x))
    return mx.flush(np.where(y == 0, np.float32(0), (sigmoid(x) * np.float32(0.5)) * rsqrt(y)))


def route_topk_backward(
    grad: Float32, logits: Float32, chosen: Indices, score: str, renormalize: bool, scale: float
) -> Float32:
    """Gradient of the logits [T, E] from that of the weights of the experts ``chosen`` [T, k].

    An expert in several slots gets their sum, ascending from +0. Without a slot it gets +0, but for ``softmax``.
    """
    with np.errstate(all="ignore"):
        found = scores(logits, score)
        slots = np.take_along_axis(found, chosen.astype(np.int64), -1)
        of_score = mx.flush(mx.flush(grad) * np.float32(scale))
        if renormalize:
            total = _added(slots)
            factor = recip(total)[:, None]
            common = _added(mx.flush(of_score * mx.flush(slots * factor)))
            shares = mx.flush(mx.flush(of_score - common[:, None]) * factor)
            of_score = np.where(total[:, None] == 0, np.float32(0), shares)
        summed = np.zeros_like(found)
        taken = np.zeros(found.shape, bool)
        token = np.arange(found.shape[0])
        for slot in range(chosen.shape[1]):
            summed[token, chosen[:, slot]] = summed[token, chosen[:, slot]] + of_score[:, slot]
            taken[token, chosen[:, slot]] = True
        if score == "softmax":
            inner = _added(mx.flush(of_score * slots))
            result = mx.flush(summed - inner[:, None]) * found
        else:
            result = np.where(taken, mx.flush(summed) * slopes(logits, found, score), np.float32(0))
    return bf16.canonical(result)
