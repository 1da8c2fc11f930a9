"""Compressed attention backward: the reference, which defines the bits (contract C5, ``numerics/attention_gradient``).

Queries of a batch row are taken in ascending order, their chunks as in the forward pass. An entry's gradient is the sum
of its contributions in that order, heads in groups of 64, from +0; one rounding to bfloat16 at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...numerics import attention as rules
from ...numerics import attention_gradient as gradient
from .reference import Bits, aligned


class Gradients(NamedTuple):
    """bfloat16 bits shaped like ``q``, ``kv`` and ``entries``; float32 [H]."""

    q: Bits
    kv: Bits
    entries: Bits
    sink: NDArray[np.float32]


def _encode(x: NDArray[np.float32]) -> Bits:
    return bf16.encode(bf16.canonical(x))


def _chunks(
    position: int, kv_start: int, raw: int, window: int, selected: NDArray[np.int32] | None, complete: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Visible rows of [kv, entries], which has ``raw`` raw entries, and their places in their chunk, by chunk."""
    if position < 0:
        return []
    first, last = max(position - window + 1, kv_start, 0), min(position + 1, kv_start + raw)
    found = [(np.arange(c.start, c.stop) - kv_start, np.arange(c.start, c.stop)) for c in aligned(first, last)]
    if selected is None:
        found += [(raw + np.arange(c.start, c.stop), np.arange(c.start, c.stop)) for c in aligned(0, complete)]
    else:
        chosen = np.sort(selected[selected >= 0]).astype(np.int64)
        cuts = [np.arange(i, min(i + rules.CHUNK, len(chosen))) for i in range(0, len(chosen), rules.CHUNK)]
        found += [(raw + chosen[cut], cut) for cut in cuts]
    return [(rows, at % rules.CHUNK) for rows, at in found if len(rows)]


def gradients(
    grad: Bits,
    q: Bits,
    kv: Bits,
    entries: Bits,
    indices: NDArray[np.int32] | None,
    sink: NDArray[np.float32],
    positions: NDArray[np.integer],
    window: int,
    scale: float,
    ratio: int,
    kv_start: NDArray[np.integer],
    cos: NDArray[np.float32] | None = None,
    sin: NDArray[np.float32] | None = None,
) -> Gradients:
    """Gradients of ``csa_attention`` (``indices`` given) or ``hca_attention``.

    Args:
        grad: bfloat16 bits [B, S, H, D] of the output's gradient.
        others: as in ``reference.csa_attention`` and ``reference.hca_attention``.
    """
    B, S, H, D = q.shape
    factor, scale32 = rules.score_factor(scale), np.float32(scale)
    of_q = np.zeros(q.shape, np.float32)
    of_rows = np.zeros((B, kv.shape[1] + entries.shape[1], D), np.float32)
    of_sink = np.zeros(H, np.float32)
    for b in range(B):
        shared = np.concatenate([kv[b], entries[b]])
        for s in range(S):
            position = int(positions[b, s])
            complete = min(entries.shape[1], max(0, (position + 1) // ratio))
            chosen = None if indices is None else indices[b, s]
            rows = _chunks(position, int(kv_start[b]), kv.shape[1], window, chosen, complete)
            turned = bf16.decode(grad[b, s])
            if cos is not None and sin is not None:
                turned = gradient.rotate(turned, cos[b, s], sin[b, s])
            cut_q, cut_grad = rules.cut(q[b, s]), rules.cut(_encode(turned))
            chunks = [gradient.Chunk(rules.cut(shared[chunk]), at) for chunk, at in rows]
            known = gradient.statistics(cut_q, cut_grad, chunks, sink, factor)
            with np.errstate(over="ignore", invalid="ignore"):
                for (places, _), chunk in zip(rows, chunks, strict=True):
                    found = gradient.contribution(cut_q, cut_grad, known, chunk.rows, factor, scale32)
                    of_q[b, s] = of_q[b, s] + found.query
                    for group in found.entries:
                        for place, term in zip(places, group, strict=True):
                            of_rows[b, place] = of_rows[b, place] + term
                of_sink = of_sink + gradient.of_sink(sink, known)
    of_kv, of_entries = of_rows[:, : kv.shape[1]], of_rows[:, kv.shape[1] :]
    return Gradients(_encode(of_q), _encode(of_kv), _encode(of_entries), bf16.canonical(of_sink))
