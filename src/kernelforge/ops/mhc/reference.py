"""Manifold-constrained hyper-connections in NumPy: these functions define the bits.

Arrays have one leading axis of tokens. Streams, block outputs and their gradients come as float32 values that are exact
in their own type (``dtype``: "bfloat16" or "float32"); results in that type are float32 arrays of rounded values. R(n)
is the row sum of contract C7; ``read`` is C1's threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...formats.mx import flush as read
from ...numerics import window
from ...numerics.elementary import rsqrt, sigmoid
from ...numerics.row_sum import row_sum
from ..sinkhorn.reference import sinkhorn, sinkhorn_backward

Float32 = NDArray[np.float32]

TOKEN_CHUNK = 128
"""Tokens that a parameter's gradient sums before it adds to the running total."""

SLICES, RANKS = 3, 3
"""Of the projection: int8 slices of streams and weights, and the weights of slice products that are kept."""

NAN = bf16.FLOAT32_NAN.view(np.float32)


def rounded(x: Float32, dtype: str) -> Float32:
    """``x`` as an op writes it in ``dtype``, as float32 values."""
    x = bf16.canonical(x)
    return bf16.canonical(bf16.decode(bf16.encode(x))) if dtype == "bfloat16" else x


def _finite_rows(x: Float32) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = np.asarray(np.isfinite(x).all(-1))
    return rows


def project(x: Float32, fn: Float32) -> Float32:
    """x [T, K] times fn [N, K] transposed by fixed-point slices (contract C4): three of each, products of three ranks.

    Chunks are added ascending from +0; a chunk with an infinity or a NaN is NaN for its token (or its weight row).
    """
    step = window.chunk_length(x.shape[-1], SLICES, SLICES)
    total = np.zeros((x.shape[0], fn.shape[0]), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, x.shape[-1], step):
            a, b = read(x[:, start : start + step]), read(fn[:, start : start + step])
            usable_a, usable_b = _finite_rows(a), _finite_rows(b)
            a = np.where(usable_a[:, None], a, np.float32(0))
            b = np.where(usable_b[:, None], b, np.float32(0))
            dot = window.sliced_dot(window.window(a, SLICES), window.window(b, SLICES), ranks=RANKS)
            total = total + np.where(usable_a[:, None] & usable_b[None, :], dot, NAN)
    return total


class Pre(NamedTuple):
    """Results of :func:`mhc_pre`; the last two are kept for the backward pass."""

    collapsed: Float32
    post: Float32
    comb: Float32
    raw: Float32
    inverse_rms: Float32


class _Mix(NamedTuple):
    mix: Float32
    logits: Float32


def _groups(outputs: int, n: int, head: bool) -> list[slice]:
    """Columns of the projection under each scale: pre, and without ``head`` post and comb."""
    return [slice(0, n)] if head else [slice(0, n), slice(n, 2 * n), slice(2 * n, outputs)]


def _mix(raw: Float32, inverse_rms: Float32, scale: Float32, base: Float32, n: int, head: bool) -> _Mix:
    mix = bf16.canonical(read(raw) * inverse_rms[:, None])
    factor = np.empty_like(base)
    for group, value in zip(_groups(base.size, n, head), read(scale), strict=True):
        factor[group] = value
    return _Mix(mix, read(mix) * factor + read(base))


def mhc_pre(
    x: Float32,
    fn: Float32,
    scale: Float32,
    base: Float32,
    dtype: str,
    iters: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
    head: bool = False,
) -> Pre:
    """Mixing weights of hyper-connections and the collapsed stream.

    Args:
        x: [T, n, C].
        fn: [n(n+2), n*C]; with ``head`` [n, n*C].
        scale: [3]; with ``head`` [1].
        base: [n(n+2)]; with ``head`` [n].
        head: the final collapse: only ``pre`` is made.
    """
    tokens, n, channels = x.shape
    with np.errstate(all="ignore"):
        flat = read(x.reshape(tokens, n * channels))
        raw = bf16.canonical(project(flat, fn))
        mean = row_sum(flat * flat) * np.float32(1 / (n * channels))
        inverse_rms = rsqrt(mean + np.float32(norm_eps))
        logits = _mix(raw, inverse_rms, scale, base, n, head).logits
        pre = sigmoid(logits[:, :n]) + np.float32(eps)
        collapsed = row_sum(np.moveaxis(pre[:, :, None] * read(x), 1, -1))
        post = np.float32(2) * sigmoid(logits[:, n : 2 * n])
        comb = logits[:, 2 * n :].reshape(tokens, 0 if head else n, n)
        if not head:
            comb = sinkhorn(comb, iters, eps)
    return Pre(rounded(collapsed, dtype), bf16.canonical(post), comb, raw, inverse_rms)


class PreGradients(NamedTuple):
    """Gradients of :func:`mhc_pre`'s arguments."""

    x: Float32
    fn: Float32
    scale: Float32
    base: Float32


def token_sum(term: Callable[[int], Float32], tokens: int, sequence: int, start: Float32) -> Float32:
    """Sum of ``term(t)`` over the tokens in the written order: chunks of 128 tokens that start anew with each sequence
    are summed ascending from +0, and added ascending to the running total, which begins as ``start``."""
    total = start.copy()
    for first in range(0, tokens, sequence):
        for begin in range(first, first + sequence, TOKEN_CHUNK):
            part = np.zeros_like(total)
            for t in range(begin, min(begin + TOKEN_CHUNK, first + sequence)):
                part = part + term(t)
            total = total + part
    return total


def mhc_pre_backward(
    collapsed_grad: Float32,
    post_grad: Float32,
    comb_grad: Float32,
    x: Float32,
    fn: Float32,
    scale: Float32,
    base: Float32,
    raw: Float32,
    inverse_rms: Float32,
    dtype: str,
    sequence: int,
    start: tuple[Float32, Float32, Float32],
    iters: int = 20,
    eps: float = 1e-6,
    head: bool = False,
) -> PreGradients:
    """Gradients of x, fn, scale and base.

    Args:
        collapsed_grad: [T, C]; post_grad: [T, n]; comb_grad: [T, n, n] (the last two empty with ``head``).
        sequence: tokens per sequence; T is a multiple.
        start: what the gradients of fn, scale and base are added to.
    """
    tokens, n, channels = x.shape
    with np.errstate(all="ignore"):
        streams, out_grad = read(x), read(collapsed_grad)
        mix, logits = _mix(raw, inverse_rms, scale, base, n, head)
        s = sigmoid(logits[:, :n])
        pre = s + np.float32(eps)
        pre_grad = row_sum(out_grad[:, None, :] * streams)
        parts = [read(pre_grad) * read(s * (np.float32(1) - s))]
        if not head:
            s = sigmoid(logits[:, n : 2 * n])
            parts.append(read(post_grad) * read(np.float32(2) * (s * (np.float32(1) - s))))
            comb = logits[:, 2 * n :].reshape(tokens, n, n)
            parts.append(sinkhorn_backward(comb_grad, comb, iters, eps).reshape(tokens, n * n))
        logit_grad = read(np.concatenate(parts, -1))
        mix = read(mix)
        groups = _groups(base.size, n, head)
        mix_grad = np.empty_like(logit_grad)
        for group, value in zip(groups, read(scale), strict=True):
            mix_grad[:, group] = read(logit_grad[:, group] * value)
        raw_grad = read(mix_grad * inverse_rms[:, None])
        # mix = raw * r with r = rsqrt(mean(x^2) + norm_eps): dx = -(sum(dmix * mix) * r / K) * (x * r).
        dot = read(row_sum(mix_grad * mix))
        shrink = read(-(read(dot * inverse_rms) * np.float32(1 / (n * channels))))
        normalized = read(streams * inverse_rms[:, None, None])
        direct = pre[:, :, None] * out_grad[:, None, :] + shrink[:, None, None] * normalized
        through = np.zeros((tokens, n * channels), np.float32)
        for m, row in enumerate(read(fn)):
            through = through + raw_grad[:, m, None] * row
        x_grad = rounded(direct + through.reshape(x.shape), dtype)
        scale_terms = np.stack([row_sum(logit_grad[:, group] * mix[:, group]) for group in groups], -1)
        flat = streams.reshape(tokens, n * channels)
        fn_grad = token_sum(lambda t: raw_grad[t][:, None] * flat[t], tokens, sequence, start[0])
        scale_grad = token_sum(lambda t: scale_terms[t], tokens, sequence, start[1])
        base_grad = token_sum(lambda t: logit_grad[t], tokens, sequence, start[2])
    return PreGradients(x_grad, bf16.canonical(fn_grad), bf16.canonical(scale_grad), bf16.canonical(base_grad))


def mhc_post(y: Float32, x: Float32, post: Float32, comb: Float32, dtype: str) -> Float32:
    """out[k] = post[k] * y + R(n) over j of comb[j, k] * x[j].

    Args:
        y: [T, C]; x: [T, n, C]; post: [T, n]; comb: [T, n, n].
    """
    with np.errstate(all="ignore"):
        mixed = row_sum(np.moveaxis(read(comb)[..., None] * read(x)[:, :, None, :], 1, -1))
        return rounded(read(post)[:, :, None] * read(y)[:, None, :] + mixed, dtype)


class PostGradients(NamedTuple):
    """Gradients of :func:`mhc_post`'s arguments."""

    y: Float32
    x: Float32
    post: Float32
    comb: Float32


def mhc_post_backward(grad: Float32, y: Float32, x: Float32, post: Float32, comb: Float32, dtype: str) -> PostGradients:
    """Gradients of y, x, post and comb.

    Args:
        grad: [T, n, C]; the others as in :func:`mhc_post`.
    """
    with np.errstate(all="ignore"):
        g, y, x, post, comb = read(grad), read(y), read(x), read(post), read(comb)
        y_grad = row_sum(np.moveaxis(post[:, :, None] * g, 1, -1))
        x_grad = row_sum(np.moveaxis(comb[..., None] * g[:, None], 2, -1))
        post_grad = row_sum(g * y[:, None])
        comb_grad = row_sum(x[:, :, None] * g[:, None])
    return PostGradients(rounded(y_grad, dtype), rounded(x_grad, dtype), post_grad, comb_grad)
