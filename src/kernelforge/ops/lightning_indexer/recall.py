"""How much of the choice FP4 operands and bfloat16 scores keep, and what that depends on.

Entries are lost where the error of a score is larger than its distance from the cut, so recall says as much about the
data as about the arithmetic: the closer scores lie around the cut, the more entries change sides that hardly differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..mx_quantize.op import quantize_mxfp4
from ..support import home_of
from .op import indexer_logits, lightning_indexer

HEADS, DEPTH, TOPK = 64, 128, 512
"""DeepSeek-V4-Flash."""

PASSAGE = 64
"""Entries that share a direction."""

AROUND = 32
"""Ranks on either side of the cut between which :attr:`Recall.slope` is taken."""


@dataclass(frozen=True)
class Recall:
    """Of the top 512 by float32 scores, averaged over queries.

    Attributes:
        rounded: the share that the call finds, if the scores are those of its own FP4 operands: what a model trained
            with FP4 operands loses by bfloat16 scores.
        quantized: the share that it finds, if the scores are those of the operands before quantization.
        score: the sum of those scores over the entries it finds, over the largest sum that 512 entries have.
        slope: the difference of these scores between 32 ranks above the cut and 32 below it, over the root mean
            square of what quantization adds to them.
    """

    rounded: float
    quantized: float
    score: float
    slope: float


def measure(noise: float, device: str = "cpu", queries: int = 16, entries: int = 1 << 14) -> Recall:
    """Recall on structured data.

    Entries come in passages of 64 that share a direction in a 128-wide space, a query asks for 8 passages, each head
    for one of them, and every vector is under noise of ``noise`` times the direction's size.
    """
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    passages = normal(entries // PASSAGE, DEPTH)
    k = passages.repeat_interleave(PASSAGE, 0) + noise * normal(entries, DEPTH)
    asked = torch.stack([torch.randperm(len(passages), generator=draw)[:8] for _ in range(queries)])
    q = passages[asked].repeat_interleave(HEADS // 8, 1) + noise * normal(queries, HEADS, DEPTH)
    weights = normal(queries, HEADS).abs() * (HEADS * DEPTH) ** -0.5
    q, k, weights = (tensor.to(home_of(device)) for tensor in (q, k, weights))
    operands = (*quantize_mxfp4(q), *quantize_mxfp4(k), weights)
    chosen = lightning_indexer(*operands, TOPK, backend=device).long()
    found = torch.zeros(queries, entries, dtype=torch.bool, device=chosen.device).scatter_(1, chosen, True)
    before = (weights[:, None] @ (q.flatten(0, 1) @ k.T).relu_().view(queries, HEADS, -1)).squeeze(1)
    after = indexer_logits(*operands, out_dtype=torch.float32, backend=device)
    rounded, quantized = (
        float(found.gather(1, scores.topk(TOPK).indices).float().mean()) for scores in (after, before)
    )
    top, places = before.topk(TOPK + AROUND)
    error = (after - before).gather(1, places)
    spread = (error - error.mean(1, keepdim=True)).square().mean(1).sqrt()
    kept = (before * found).sum(1) / top[:, :TOPK].sum(1)
    slope = (top[:, TOPK - AROUND] - top[:, TOPK + AROUND - 1]) / spread
    return Recall(rounded, quantized, float(kept.mean()), float(slope.mean()))
