"""Hyper-connections as a torch user writes them; in float64 they are what bits are measured against."""

from __future__ import annotations

import torch
from sinkhorn_float64 import sinkhorn

Tensor = torch.Tensor


def _projected(x: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    flat = x.flatten(-2)
    flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)
    return flat @ fn.T


def mhc_pre(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int = 20, eps: float = 1e-6, norm_eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    n = x.shape[-2]
    mix = _projected(x, fn, norm_eps).split([n, n, n * n], -1)
    bias = base.split([n, n, n * n])
    pre = torch.sigmoid(mix[0] * scale[0] + bias[0]) + eps
    post = 2 * torch.sigmoid(mix[1] * scale[1] + bias[1])
    comb = sinkhorn((mix[2] * scale[2] + bias[2]).unflatten(-1, (n, n)), iters, eps)
    return (pre.unsqueeze(-1) * x).sum(-2), post, comb


def mhc_head(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, eps: float = 1e-6, norm_eps: float = 1e-6) -> Tensor:
    pre = torch.sigmoid(_projected(x, fn, norm_eps) * scale + base) + eps
    return (pre.unsqueeze(-1) * x).sum(-2)


def mhc_post(y: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    return post.unsqueeze(-1) * y.unsqueeze(-2) + comb.transpose(-1, -2) @ x
