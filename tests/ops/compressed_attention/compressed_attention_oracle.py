"""Compressed attention in float64, straight from what a query sees."""

from __future__ import annotations

import numpy as np

from kernelforge.formats import bf16
from kernelforge.ops.compressed_attention import conformance_data as data


def attend(case: data.Problem) -> tuple[np.ndarray, np.ndarray]:
    """out and sum(p |v|), float64 [B, S, H, D]; with an output rotation, of pairs: |v| is then the pair's length."""
    x = data.operands(case)
    q, kv, entries = (bf16.decode(values).astype(np.float64) for values in (x.q, x.kv, x.entries))
    out, magnitude = np.zeros((2, *x.q.shape))
    for b, s in np.ndindex(case.B, case.S):
        position = int(x.positions[b, s])
        first, start = max(position - case.window + 1, int(x.kv_start[b]), 0), int(x.kv_start[b])
        seen = [kv[b, first - start : position + 1 - start]] if position >= 0 else []
        if position >= 0 and x.indices is not None:
            seen.append(entries[b, np.unique(x.indices[b, s][x.indices[b, s] >= 0])])
        elif position >= 0:
            seen.append(entries[b, : min((position + 1) // case.ratio, case.N)])
        if sum(map(len, seen)) == 0:
            continue
        v = np.concatenate(seen)
        scores = np.concatenate([q[b, s] @ v.T * x.scale, x.sink[:, None].astype(np.float64)], 1)
        p = np.exp(scores - scores.max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True))[:, :-1]
        out[b, s], magnitude[b, s] = p @ v, p @ np.abs(v)
    if x.cos is not None and x.sin is not None:
        rope = 2 * x.cos.shape[-1]
        c, n = x.cos[:, :, None].astype(np.float64), x.sin[:, :, None].astype(np.float64)
        even, odd = out[..., -rope::2].copy(), out[..., 1 - rope :: 2].copy()
        out[..., -rope::2], out[..., 1 - rope :: 2] = even * c + odd * n, odd * c - even * n
        length = np.hypot(magnitude[..., -rope::2], magnitude[..., 1 - rope :: 2])
        magnitude[..., -rope::2] = magnitude[..., 1 - rope :: 2] = length
    return out, magnitude
