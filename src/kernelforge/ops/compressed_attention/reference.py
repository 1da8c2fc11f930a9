"""Compressed attention: the reference, which defines the bits (contract C5, ``numerics/attention.py``).

Arrays are NumPy; bfloat16 travels as uint16 bits. A query at position p sees the raw entries of its window, positions
``p - window + 1`` to p, and some compressed entries: selected ones (CSA) or all complete ones (HCA). Chunks of the
window are aligned to multiples of 128 of the position, chunks of all compressed entries to multiples of 128 of their
index; selected entries are sorted ascending and cut into 128s. The window comes first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...numerics import attention as rules

Bits = NDArray[np.uint16]


def aligned(first: int, last: int) -> Iterator[range]:
    """The indices ``first .. last - 1`` cut at multiples of 128."""
    for chunk in range(first // rules.CHUNK, -(-last // rules.CHUNK)):
        yield range(max(first, chunk * rules.CHUNK), min(last, (chunk + 1) * rules.CHUNK))


def attend(
    q: Bits,
    kv: Bits,
    kv_start: int,
    position: int,
    chunks: list[Bits],
    sink: NDArray[np.float32],
    window: int,
    factor: np.float32,
    rotation: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> Bits:
    """One query.

    Args:
        q: bfloat16 bits [H, D].
        kv: raw entries [T, D] of positions ``kv_start``, ``kv_start + 1``, ...
        position: of the query; negative: it sees nothing.
        chunks: compressed entries, chunk by chunk, [n, D] each.
        sink: float32 [H].
        window: raw entries a query sees at most.
        factor: ``score_factor(scale)``.
        rotation: cos and sin float32 [R / 2], to undo the rotation on the output.

    Returns:
        bfloat16 bits [H, D].
    """
    state = rules.start(sink, q.shape[1])
    rows = rules.cut(q)
    raw = (
        [] if position < 0 else aligned(max(position - window + 1, kv_start, 0), min(position + 1, kv_start + len(kv)))
    )
    visible = [kv[chunk.start - kv_start : chunk.stop - kv_start] for chunk in raw]
    for entries in [*visible, *([] if position < 0 else chunks)]:
        if len(entries):
            state = rules.merge(state, rules.chunk(rows, rules.cut(entries), factor))
    out = rules.finish(state)
    if rotation is not None:
        out = rules.unrotate(out, *rotation)
    return bf16.encode(bf16.canonical(out))


def csa_attention(
    q: Bits,
    kv: Bits,
    entries: Bits,
    indices: NDArray[np.int32],
    sink: NDArray[np.float32],
    positions: NDArray[np.integer],
    window: int,
    scale: float,
    kv_start: NDArray[np.integer],
    cos: NDArray[np.float32] | None = None,
    sin: NDArray[np.float32] | None = None,
) -> Bits:
    """Window and selected entries.

    Args:
        q: [B, S, H, D]; kv: [B, T, D]; entries: [B, N, D]; bfloat16 bits.
        indices: int32 [B, S, K] into a batch row's entries, -1 for none.
        sink: float32 [H].
        positions: [B, S].
        kv_start: [B], the position of the first row of kv.
        cos, sin: float32 [B, S, R / 2], or None.

    Returns:
        bfloat16 bits [B, S, H, D].
    """
    out = np.empty_like(q)
    factor = rules.score_factor(scale)
    for b, s in np.ndindex(*q.shape[:2]):
        chosen = np.sort(indices[b, s][indices[b, s] >= 0])
        chunks = [entries[b][chosen[i : i + rules.CHUNK]] for i in range(0, len(chosen), rules.CHUNK)]
        rotation = None if cos is None or sin is None else (cos[b, s], sin[b, s])
        out[b, s] = attend(
            q[b, s], kv[b], int(kv_start[b]), int(positions[b, s]), chunks, sink, window, factor, rotation
        )
    return out


def hca_attention(
    q: Bits,
    kv: Bits,
    entries: Bits,
    sink: NDArray[np.float32],
    positions: NDArray[np.integer],
    window: int,
    scale: float,
    kv_start: NDArray[np.integer],
    ratio: int,
    cos: NDArray[np.float32] | None = None,
    sin: NDArray[np.float32] | None = None,
) -> Bits:
    """Window and every compressed entry that is complete at the query's position: index below (position + 1) // ratio.

    Arguments as in :func:`csa_attention`.
    """
    out = np.empty_like(q)
    factor = rules.score_factor(scale)
    for b, s in np.ndindex(*q.shape[:2]):
        complete = min(entries.shape[1], max(0, (int(positions[b, s]) + 1) // ratio))
        chunks = [entries[b][piece.start : piece.stop] for piece in aligned(0, complete)]
        rotation = None if cos is None or sin is None else (cos[b, s], sin[b, s])
        out[b, s] = attend(
            q[b, s], kv[b], int(kv_start[b]), int(positions[b, s]), chunks, sink, window, factor, rotation
        )
    return out
