"""Compression of key-value streams in NumPy: these functions define the bits.

One function serves both kinds: CSA (``overlap``: two series of channels, 2 * ratio slots per entry) and HCA (one
series, ratio slots). A sequence is compressed whole; feeding it in pieces must give the same entries, so there is no
state here. Inputs are float32 arrays; bfloat16 inputs convert exactly. ``docs/numerics.md`` says the same in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats.bf16 import canonical
from ...formats.mx import flush as read
from ...numerics.elementary import LOG2_E, exp2, recip_positive, rsqrt, value
from ...numerics.row_sum import row_sum

Float32 = NDArray[np.float32]

LOWEST_WEIGHT = np.float32(-50)
"""Slots whose weight is below 2^-50 of the heaviest one's have weight 0."""


class _Windows(NamedTuple):
    """The slots of every entry: float32 [entries, slots, D], and whether a slot has a token."""

    kv: Float32
    logits: Float32
    present: NDArray[np.bool_]


def _slots(x: Float32, ratio: int, overlap: bool) -> Float32:
    """[S, series * D] to [entries, slots, D]; slots without a token hold 0."""
    entries, width = len(x) // ratio, x.shape[1]
    windows = x[: entries * ratio].reshape(entries, ratio, width)
    if not overlap:
        return windows
    before = np.zeros((entries, ratio, width // 2), np.float32)
    before[1:] = windows[:-1, :, : width // 2]
    return np.concatenate((before, windows[:, :, width // 2 :]), axis=1)


def _windows(kv: Float32, gate: Float32, position_bias: Float32, ratio: int, overlap: bool) -> _Windows:
    entries = len(kv) // ratio
    bias = np.tile(read(position_bias), (entries, 1))
    logits = read(gate)[: len(bias)] + bias
    present = np.ones((entries, 2 * ratio if overlap else ratio, 1), np.bool_)
    if overlap:
        present[:1, :ratio] = False
    return _Windows(_slots(read(kv), ratio, overlap), _slots(logits, ratio, overlap), present)


def _sum_of_slots(x: Float32) -> Float32:
    """R(slots) over axis 1: [entries, slots, D] to [entries, D]."""
    return row_sum(np.ascontiguousarray(np.swapaxes(x, 1, 2)))


class _Pooled(NamedTuple):
    weights: Float32
    """[entries, slots, D], not yet divided by their sum."""
    share: Float32
    """1 / the sum of the weights, [entries, D]."""
    mean: Float32
    """The weighted mean of kv, [entries, D]."""


def _pool(w: _Windows) -> _Pooled:
    logits = np.where(w.present, w.logits, np.float32(-np.inf))
    # A NaN decides the result wherever it stands; the largest of the others is then of no consequence.
    top = np.max(logits, axis=1, keepdims=True, initial=-np.inf)
    scaled = (logits - top) * value(LOG2_E)
    weights = np.where(w.present & ~(scaled < LOWEST_WEIGHT), exp2(scaled), np.float32(0))
    terms = np.where(w.present, weights * w.kv, np.float32(0))
    share = recip_positive(_sum_of_slots(weights))
    return _Pooled(weights, share, read(read(_sum_of_slots(terms)) * share))


class _Normalized(NamedTuple):
    inverse_rms: Float32
    """[entries, 1]."""
    value: Float32
    """mean / rms, [entries, D]."""


def _normalize(mean: Float32, eps: float) -> _Normalized:
    D = mean.shape[1]
    square = row_sum(mean * mean)[:, None] * np.float32(1 / D) + np.float32(eps)
    inverse_rms = rsqrt(square)
    return _Normalized(inverse_rms, read(mean * inverse_rms))


def _angles(table: Float32, entries: int, ratio: int) -> Float32:
    return read(table[: entries * ratio : ratio])


def _rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """Turn the pairs of trailing channels (2i, 2i + 1) by the angles [entries, pairs]."""
    plain = x.shape[1] - 2 * cos.shape[1]
    even, odd = x[:, plain::2], x[:, plain + 1 :: 2]
    turned = x.copy()
    turned[:, plain::2] = even * cos - odd * sin
    turned[:, plain + 1 :: 2] = odd * cos + even * sin
    return turned


def compress(
    kv: Float32,
    gate: Float32,
    position_bias: Float32,
    norm_weight: Float32,
    cos: Float32,
    sin: Float32,
    ratio: int,
    overlap: bool,
    eps: float = 1e-6,
) -> Float32:
    """Entries of one sequence.

    Args:
        kv, gate: float32 [S, series * D]; series is 2 with overlap, else 1.
        position_bias: float32 [ratio, series * D].
        norm_weight: float32 [D].
        cos, sin: float32 [positions, pairs], row p for position p; the last 2 * pairs channels are turned.

    Returns:
        float32 [S // ratio, D]; not yet rounded to a narrower type.
    """
    with np.errstate(all="ignore"):
        pooled = _pool(_windows(kv, gate, position_bias, ratio, overlap))
        normalized = read(_normalize(pooled.mean, eps).value * read(norm_weight))
        entries = len(normalized)
        turned = _rotate(normalized, _angles(cos, entries, ratio), _angles(sin, entries, ratio))
        return canonical(read(turned))


class Gradients(NamedTuple):
    """float32, in the shapes of what they are gradients of."""

    kv: Float32
    gate: Float32
    position_bias: Float32
    norm_weight: Float32


CHUNK = 32
"""Entries of a sequence whose gradients are summed before anything else is added."""


def compress_backward(
    grad: Float32,
    kv: Float32,
    gate: Float32,
    position_bias: Float32,
    norm_weight: Float32,
    cos: Float32,
    sin: Float32,
    ratio: int,
    overlap: bool,
    eps: float = 1e-6,
) -> Gradients:
    """Gradients of one sequence's inputs; :func:`add_sequences` makes those of a batch.

    Args:
        grad: of the entries, float32 [S // ratio, D].
        kv, gate, position_bias, norm_weight, cos, sin, ratio, overlap, eps: as in :func:`compress`.

    Returns:
        kv and gate not yet rounded to a narrower type; position_bias [chunks, slots, D] and norm_weight [chunks, D] as
        sums over chunks of 32 entries.
    """
    with np.errstate(all="ignore"):
        w = _windows(kv, gate, position_bias, ratio, overlap)
        pooled = _pool(w)
        inverse_rms, normalized = _normalize(pooled.mean, eps)
        entries, D = normalized.shape
        back = read(_rotate(read(grad), _angles(cos, entries, ratio), -_angles(sin, entries, ratio)))
        scaled = read(back * read(norm_weight))
        common = read(row_sum(scaled * normalized)[:, None] * np.float32(1 / D))
        slope = read(read(scaled - normalized * common) * inverse_rms)[:, None]
        of_kv = read((pooled.weights * pooled.share[:, None]) * slope)
        of_logits = np.where(w.present, of_kv * read(w.kv - pooled.mean[:, None]), np.float32(0))
        return Gradients(
            _tokens(of_kv, kv.shape, ratio, overlap),
            _tokens(of_logits, kv.shape, ratio, overlap),
            _chunk_sums(of_logits),
            _chunk_sums(back * normalized),
        )


def add_sequences(found: Sequence[Gradients], ratio: int, overlap: bool) -> tuple[Float32, Float32]:
    """Gradients of position_bias [ratio, series * D] and norm_weight [D]: chunks ascending, sequence after sequence."""
    with np.errstate(all="ignore"):
        bias = _ascending(np.concatenate([one.position_bias for one in found]))
        weight = _ascending(np.concatenate([one.norm_weight for one in found]))
    series = [bias[:ratio], bias[ratio:]] if overlap else [bias]
    return canonical(np.concatenate(series, axis=1)), canonical(weight)


def _tokens(x: Float32, shape: tuple[int, ...], ratio: int, overlap: bool) -> Float32:
    """The inverse of :func:`_slots`: [entries, slots, D] to [S, series * D]; zeros where no entry has the slot."""
    entries, _, D = x.shape
    windows = np.zeros((entries, ratio, shape[1]), np.float32)
    windows[:, :, -D:] = x[:, -ratio:]
    if overlap:
        windows[:-1, :, :D] = x[1:, :ratio]
    tokens = np.zeros(shape, np.float32)
    tokens[: entries * ratio] = windows.reshape(-1, shape[1])
    return canonical(tokens)


def _chunk_sums(x: Float32) -> Float32:
    """Sums over chunks of 32 along axis 0, ascending from +0."""
    return np.stack([_ascending(x[i : i + CHUNK]) for i in range(0, len(x), CHUNK)] or [np.zeros_like(x[:0].sum(0))])


def _ascending(x: Float32) -> Float32:
    total = np.zeros(x.shape[1:], np.float32)
    for part in x:
        total = total + part
    return total
