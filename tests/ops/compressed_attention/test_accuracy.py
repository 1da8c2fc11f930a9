"""The contract's attention against float64, and against bfloat16 flash attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernelforge.formats import bf16
from kernelforge.numerics import attention as rules

HEADS, D = 16, 512


def draw(rng: np.random.Generator, shape: tuple[int, int], data: str) -> np.ndarray:
    """Rows as they arrive in the model: normalized to a root mean square of 1."""
    x = rng.standard_t(3, shape) if data == "student" else rng.standard_normal(shape)
    if data == "outlier":
        x[:, rng.choice(shape[1], 4, replace=False)] *= 100
    x /= np.sqrt((x**2).mean(-1, keepdims=True))
    return bf16.encode(x.astype(np.float32))


def oracle(q: np.ndarray, entries: np.ndarray, sink: np.ndarray, scale: float) -> np.ndarray:
    logits = q @ entries.T * scale
    logits = np.concatenate([logits, sink[:, None]], 1)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True))[:, :-1] @ entries


def contract(q: np.ndarray, entries: np.ndarray, sink: np.ndarray, scale: float) -> np.ndarray:
    """float32, before the one rounding to bfloat16."""
    state = rules.start(sink, q.shape[1])
    for start in range(0, len(entries), rules.CHUNK):
        chunk = rules.chunk(rules.cut(q), rules.cut(entries[start : start + rules.CHUNK]), rules.score_factor(scale))
        state = rules.merge(state, chunk)
    return rules.finish(state)


def flash(q: np.ndarray, entries: np.ndarray, sink: np.ndarray, scale: float) -> np.ndarray:
    """bfloat16 operands and probabilities, float32 sums and statistics; not rounded at the end."""
    x, k = (torch.from_numpy(bf16.decode(bits)) for bits in (q, entries))
    m, denominator = torch.from_numpy(sink).clone(), torch.ones(len(sink))
    o = torch.zeros(len(sink), k.shape[1])
    for start in range(0, len(k), 128):
        block = k[start : start + 128]
        logits = x @ block.T * scale
        top = torch.maximum(m, logits.amax(1))
        p, rescale = torch.exp(logits - top[:, None]), torch.exp(m - top)
        denominator = denominator * rescale + p.sum(1)
        o = o * rescale[:, None] + p.bfloat16().float() @ block
        m = top
    return (o / denominator[:, None]).numpy()


@pytest.mark.parametrize("peak", [1.0, 3.0])
@pytest.mark.parametrize("count", [128, 640, 2048])
@pytest.mark.parametrize("data", ["normal", "student", "outlier"])
def test_closer_to_float64_than_bfloat16_flash_attention(data, count, peak):
    rng = np.random.default_rng(11)
    q, entries = draw(rng, (HEADS, D), "normal"), draw(rng, (count, D), data)
    sink = rng.standard_normal(HEADS).astype(np.float32)
    scale = peak * D**-0.5
    exact = oracle(bf16.decode(q).astype(float), bf16.decode(entries).astype(float), sink.astype(float), scale)
    ours = np.linalg.norm(contract(q, entries, sink, scale) - exact) / np.linalg.norm(exact)
    theirs = np.linalg.norm(flash(q, entries, sink, scale) - exact) / np.linalg.norm(exact)
    assert ours < theirs
    assert ours < 1e-3
