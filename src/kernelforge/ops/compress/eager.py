"""Compression as a torch user writes it: what the ops are timed against."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def compress(
    kv: Tensor, gate: Tensor, position_bias: Tensor, norm_weight: Tensor, cos: Tensor, sin: Tensor, ratio: int
) -> Tensor:
    """Entries [B, S // ratio, D] of whole sequences; overlapping windows where kv is twice as wide as the weight.

    As transformers' DeepSeek-V4 compressors: the softmax and the normalization in float32, the products in kv's type.
    """
    batch, S, width = kv.shape
    D, n = norm_weight.shape[0], S // ratio
    kv = kv[:, : n * ratio].view(batch, n, ratio, width)
    gate = gate[:, : n * ratio].view(batch, n, ratio, width) + position_bias.to(gate.dtype)
    if width != D:
        slots = kv.new_zeros((batch, n, 2 * ratio, D))
        logits = gate.new_full((batch, n, 2 * ratio, D), float("-inf"))
        slots[:, :, ratio:], logits[:, :, ratio:] = kv[..., D:], gate[..., D:]
        slots[:, 1:, :ratio], logits[:, 1:, :ratio] = kv[:, :-1, :, :D], gate[:, :-1, :, :D]
        kv, gate = slots, logits
    mean = (kv * gate.softmax(2, dtype=torch.float32).to(kv.dtype)).sum(2)
    wide = mean.float()
    entries = (norm_weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6))).to(kv.dtype)
    plain = D - 2 * cos.shape[1]
    rotary = entries[..., plain:].float()
    even, odd = rotary[..., ::2], rotary[..., 1::2]
    c, s = cos[: n * ratio : ratio], sin[: n * ratio : ratio]
    turned = torch.stack((even * c - odd * s, odd * c + even * s), -1).flatten(-2)
    return torch.cat((entries[..., :plain], turned.to(entries.dtype)), -1)
