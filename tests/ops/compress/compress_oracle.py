"""Compression in plain torch, in the type of its inputs: the textbook formula for comparisons within a tolerance."""

from __future__ import annotations

import torch
from torch import Tensor


def entries_in_double(
    kv: Tensor,
    gate: Tensor,
    position_bias: Tensor,
    norm_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    ratio: int,
    overlap: bool,
) -> Tensor:
    """Entries [B, S // ratio, D] of float64 inputs as the public functions take them; differentiable."""
    batch, S, width = kv.shape
    D, n = norm_weight.shape[0], S // ratio
    kv = kv[:, : n * ratio].reshape(batch, n, ratio, width)
    logits = gate[:, : n * ratio].reshape(batch, n, ratio, width) + position_bias
    if overlap:
        before = torch.zeros_like(kv[:, :1, :, :D])
        kv = torch.cat((torch.cat((before, kv[:, :-1, :, :D]), 1), kv[..., D:]), 2)
        nobody = torch.full_like(before, float("-inf"))
        logits = torch.cat((torch.cat((nobody, logits[:, :-1, :, :D]), 1), logits[..., D:]), 2)
    mean = (logits.softmax(2) * kv).sum(2)
    x = mean * torch.rsqrt(mean.square().mean(-1, keepdim=True) + 1e-6) * norm_weight
    pairs = cos.shape[1]
    even, odd = x[..., D - 2 * pairs :: 2], x[..., D - 2 * pairs + 1 :: 2]
    c, s = cos[: n * ratio : ratio], sin[: n * ratio : ratio]
    turned = torch.stack((even * c - odd * s, odd * c + even * s), -1).flatten(-2)
    return torch.cat((x[..., : D - 2 * pairs], turned), -1)
