"""Gradients of attention over shared entries (contract C5, backward) in NumPy.

Nothing is kept of the forward pass but its output: probabilities are computed again from a row's final maximum and
denominator. Both kinds of sums, over a chunk's entries (queries' gradients) and over a group of heads (entries'), are
exact dots of windows, to whose weights every value's power of two is joined.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import attention as rules
from . import window
from .elementary import exp2, recip
from .row_sum import row_sum

GROUP = 64
"""Heads whose contributions to an entry's gradient are summed exactly."""

Float32 = NDArray[np.float32]


class Chunk(NamedTuple):
    """Visible entries of one chunk, and their places in it (0 to 127)."""

    rows: rules.Rows
    places: NDArray[np.integer]


class Statistics(NamedTuple):
    """Of a query's heads, float32 [H]: the largest score and one over the denominator (both with the sink), the mean of
    the probabilities' gradients under the probabilities; whether the row's gradients are NaN."""

    m: Float32
    share: Float32
    mean: Float32
    unusable: NDArray[np.bool_]


class Contribution(NamedTuple):
    """Of one chunk: to the gradient of the queries, float32 [H, D]; to that of each of its entries, by group of heads,
    [groups, n, D]."""

    query: Float32
    entries: Float32


def rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """The transposition of :func:`kernelforge.numerics.attention.unrotate`: (x0 c - x1 s, x1 c + x0 s)."""
    return rules.unrotate(x, cos, -sin)


def rises(grad: rules.Rows, entries: rules.Rows) -> Float32:
    """Gradients of the probabilities, float32 [H, n]: gradient and entry by C4; at most 2^100, +0 below 2^-50."""
    with np.errstate(over="ignore"):
        return rules.read(rules.clamp(window.sliced_dot(grad.window, entries.window)))


def _mean_of(weight: Float32, rise: Float32, places: NDArray[np.integer]) -> Float32:
    """R(128) over the chunk's places of weight * rise."""
    product = np.zeros((len(weight), rules.CHUNK), np.float32)
    product[:, places] = rules.limit(weight * rise)
    return row_sum(product)


def statistics(q: rules.Rows, grad: rules.Rows, chunks: list[Chunk], sink: Float32, factor: np.float32) -> Statistics:
    """What all chunks together say of a query's heads.

    Args:
        q: the queries' rows.
        grad: rows of the output's gradient, rotated like the queries.
        chunks: the visible entries.
        sink: float32 [H].
        factor: ``score_factor`` of the softmax scale.
    """
    # A state whose numerators have one channel.
    state = rules.start(sink, 1)
    for rows, places in chunks:
        m, l, _ = rules.chunk(q, rows, factor)  # noqa: E741
        weight = exp2(rules.scores(q, rows, factor) - m[:, None]) * np.float32(rules.WEIGHT_ONE)
        mean = _mean_of(weight, rises(grad, rows), places)
        state = rules.merge(state, rules.State(m, l, mean[:, None]))
    with np.errstate(invalid="ignore", over="ignore"):
        inverse = recip(state.l)
        share = inverse * np.float32(rules.WEIGHT_ONE)
        mean = rules.read(state.o[:, 0] * inverse)
    unusable = np.isnan(state.l) | (grad.exponent == rules.UNUSABLE)
    return Statistics(state.m, share, mean, unusable)


def _align(x: Float32, exponent: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Windows of x[i, k] * 2^exponent[k] along k, and the exponents of their units."""
    largest = exponent.max()
    aligned = window.scale_by_power_of_two(x, np.broadcast_to(exponent - largest, x.shape))
    cut = window.window(aligned)
    return cut.q, cut.exponent + largest - 15


def _dot(x: Float32, rows: rules.Rows) -> Float32:
    """sum over k of x[i, k] * row k."""
    windows, unit = _align(x, rows.exponent)
    total = rules.joined(windows, rows.window.q)
    return window.scale_by_power_of_two(total, np.broadcast_to((unit - 15)[:, None], total.shape))


def contribution(
    q: rules.Rows, grad: rules.Rows, known: Statistics, entries: rules.Rows, factor: np.float32, scale: np.float32
) -> Contribution:
    """What one chunk of visible entries contributes."""
    p = rules.read(exp2(rules.scores(q, entries, factor) - known.m[:, None]) * known.share[:, None])
    with np.errstate(over="ignore", invalid="ignore"):
        rise = rules.read(rises(grad, entries) - known.mean[:, None])
        s = rules.read(rules.read(p * rise) * scale)
    p, s = (np.where(known.unusable[:, None], np.float32(0), x) for x in (p, s))
    of_query = np.where(known.unusable[:, None], rules.NAN, _dot(s, entries))
    of_entries = []
    for first in range(0, len(p), GROUP):
        heads = np.s_[first : first + GROUP]
        with np.errstate(over="ignore", invalid="ignore"):
            term = _dot(p[heads].T, _part(grad, heads)) + _dot(s[heads].T, _part(q, heads))
        of_entries.append(np.where(known.unusable[heads].any(), rules.NAN, term))
    return Contribution(of_query.astype(np.float32), np.stack(of_entries).astype(np.float32))


def _part(rows: rules.Rows, part: slice) -> rules.Rows:
    cut = window.Window(rows.window.q[part], rows.window.exponent[part], rows.window.slices)
    return rules.Rows(cut, rows.exponent[part])


def of_sink(sink: Float32, known: Statistics) -> Float32:
    """The query's term of the sinks' gradient, float32 [H]."""
    weight = rules.read(exp2(rules.start(sink, 1).m - known.m) * known.share)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(known.unusable, rules.NAN, rules.read(-(weight * known.mean)))
