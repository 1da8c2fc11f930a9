"""Attention over shared key-value entries (contract C5) in NumPy: chunks of scores, merged in ascending order.

Every entry is key and value at once. A query keeps a state ``(m, l, o)``: the largest scaled score so far, the
denominator and the numerators relative to it. ``chunk`` computes what up to 128 entries contribute, exactly but for
the elementwise steps that are written out; ``merge`` adds it to the state. Only merges are ordered.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats import bf16
from . import window
from .elementary import exp2, recip

CHUNK = 128
"""Entries whose contributions are summed exactly; chunks are aligned to multiples of it."""

WEIGHT_ONE = 32512
"""The integer that stands for a probability of 1: 127 * 256, the largest weight whose high slice is an int8."""

LEAST_EXPONENT = -49
"""Row exponent of an entry of zeros in a chunk's maximum: that of 2^-50, the smallest value that is not read as 0."""

UNUSABLE = 255
"""Row exponent of an entry or a query with a NaN or an infinity."""

LARGEST_SCORE = np.float32(2.0**100)
SMALLEST_READ = np.float32(2.0**-50)
SMALLEST_RESULT = np.float32(2.0**-100)
NAN = bf16.FLOAT32_NAN.view(np.float32)

LOG2_E = np.float32(math.log2(math.e))


def window_slots(window: int) -> int:
    """Aligned chunks that ``window`` consecutive positions may touch."""
    return (window + CHUNK - 2) // CHUNK + 1


def score_factor(scale: float) -> np.float32:
    """``scale * log2(e)`` in float64, rounded to float32: what scores are multiplied by."""
    return np.float32(scale * math.log2(math.e))


class Rows(NamedTuple):
    """Rows cut by C4 under one exponent each.

    Attributes:
        window: integers [n, D] and exponents [n], 0 for a row of zeros; zeros where a row is unusable.
        exponent: int32 [n], the same but :data:`LEAST_EXPONENT` for a row of zeros and :data:`UNUSABLE` for a row with
            a NaN or an infinity.
    """

    window: window.Window
    exponent: NDArray[np.int32]


def cut(x: NDArray[np.uint16]) -> Rows:
    """Rows of bfloat16 bits [n, D], D at most 512."""
    values = bf16.decode(x)
    unusable: NDArray[np.bool_] = np.asarray(~np.isfinite(values).all(-1))
    values = np.where(unusable[:, None] | (np.abs(values) < SMALLEST_READ), np.float32(0), values)
    cut_rows = window.window(values)
    exponent = np.where((cut_rows.q == 0).all(-1), LEAST_EXPONENT, cut_rows.exponent)
    return Rows(cut_rows, np.where(unusable, UNUSABLE, exponent).astype(np.int32))


class State(NamedTuple):
    """``m`` and ``l`` float32 [rows], ``o`` float32 [rows, D]."""

    m: NDArray[np.float32]
    l: NDArray[np.float32]  # noqa: E741 - the literature's name of the denominator
    o: NDArray[np.float32]


def clamp(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most 2^100 in magnitude; NaN stays."""
    return np.where(x > LARGEST_SCORE, LARGEST_SCORE, np.where(x < -LARGEST_SCORE, -LARGEST_SCORE, x))


def read(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """+0 where the magnitude is below 2^-50 (C1)."""
    return np.where(np.abs(x) < SMALLEST_READ, np.float32(0), x)


def limit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """+0 where the magnitude is below 2^-100."""
    return np.where(np.abs(x) < SMALLEST_RESULT, np.float32(0), x)


def start(sink: NDArray[np.float32], width: int) -> State:
    """The state before any entry: the sink alone, one weight of e^sink without a value.

    Args:
        sink: float32 [rows]; -Inf is no sink at all unless nothing else is seen. NaN makes a row's output NaN.
        width: D.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        m = clamp(read(read(sink) * LOG2_E))
    denominator = np.where(np.isnan(sink), NAN, np.float32(WEIGHT_ONE)).astype(np.float32)
    return State(np.where(np.isnan(sink), np.float32(0), m), denominator, np.zeros((*sink.shape, width), np.float32))


def scores(q: Rows, entries: Rows, factor: np.float32) -> NDArray[np.float32]:
    """float32 [rows, n]: q.k by C4, times ``factor``, at most 2^100 in magnitude; 0 below 2^-50."""
    with np.errstate(over="ignore"):
        return read(clamp(window.sliced_dot(q.window, entries.window) * factor))


def _nearest(x: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.rint(x).astype(np.int32)


def joined(weights: NDArray[np.int32], values: NDArray[np.int32]) -> NDArray[np.float32]:
    """The dots of windows [m, n] and [n, D], in units of both: ``(hh * 65536 + hl * 256) + ll`` of exact sums."""
    dots = [np.zeros((weights.shape[0], values.shape[1]), np.float64) for _ in range(3)]
    for i, left in enumerate(window.split(weights)):
        for j, right in enumerate(window.split(values)):
            dots[i + j] += left.astype(np.float64) @ right.astype(np.float64)
    total = np.zeros_like(dots[0], np.float32)
    for exact, unit in zip(dots, (65536, 256, 1), strict=True):
        total = total + exact.astype(np.float32) * np.float32(unit)
    return total


def chunk(q: Rows, entries: Rows, factor: np.float32) -> State:
    """What at most 128 visible entries contribute to each row of ``q``, relative to their own largest score.

    Args:
        q: the queries' rows (heads).
        entries: the visible entries, at least one.
        factor: :func:`score_factor` of the softmax scale.
    """
    t = scores(q, entries, factor)
    m = t.max(-1)
    weight = exp2(t - m[:, None]) * np.float32(WEIGHT_ONE)
    largest = entries.exponent.max()
    unusable = (q.exponent == UNUSABLE) | (largest == UNUSABLE)
    denominator = np.where(unusable, NAN, _nearest(weight).sum(-1).astype(np.float32))
    # A value is q * 2^(e - 15): the entry's own power of two joins its weight, relative to the chunk's largest.
    places = np.maximum(entries.exponent - largest, -30)
    total = joined(_nearest(np.ldexp(weight, places)), entries.window.q)
    exponent = np.full(total.shape, 0 if largest == UNUSABLE else largest - 15, np.int32)
    return State(m, denominator.astype(np.float32), window.scale_by_power_of_two(total, exponent))


def merge(state: State, other: State) -> State:
    """``state`` with the contribution of the next chunk, in ascending order of chunks."""
    m = np.where(other.m > state.m, other.m, state.m)
    a, b = exp2(state.m - m), exp2(other.m - m)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        denominator = limit(state.l * a) + limit(other.l * b)
        o = limit(state.o * a[:, None]) + limit(other.o * b[:, None])
    return State(m, denominator, o)


def finish(state: State) -> NDArray[np.float32]:
    """float32 [rows, D]: numerators times the reciprocal of the denominator."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return limit(state.o * recip(state.l)[:, None])


def unrotate(x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32]) -> NDArray[np.float32]:
    """The trailing channels of [rows, D] rotated back, in interleaved pairs (x0, x1) to (x0 c + x1 s, x1 c - x0 s).

    Args:
        cos, sin: float32 [R / 2] of the query's position.
    """
    c, s = read(cos), read(sin)
    head, tail = x[:, : x.shape[1] - 2 * len(c)], x[:, x.shape[1] - 2 * len(c) :]
    even, odd = tail[:, 0::2], tail[:, 1::2]
    turned = np.empty_like(tail)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        turned[:, 0::2] = limit(limit(even * c) + limit(odd * s))
        turned[:, 1::2] = limit(limit(odd * c) - limit(even * s))
    return np.concatenate([head, turned], 1)
