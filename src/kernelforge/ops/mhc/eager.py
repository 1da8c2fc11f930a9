"""Hyper-connections as a torch user writes them: what the ops are timed against and, in float64, measured against."""

from __future__ import annotations

import torch

from ..sinkhorn.eager import sinkhorn

Tensor = torch.Tensor


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def _projected(x: Tensor, fn: Tensor, norm_eps: float) -> Tensor:
    flat = _wide(x).flatten(-2)
    flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + norm_eps)
    return torch.nn.functional.linear(flat, fn)


def mhc_pre(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int = 20, eps: float = 1e-6, norm_eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`kernelforge.mhc_pre`."""
    n = x.shape[-2]
    mix = _projected(x, fn, norm_eps).split([n, n, n * n], -1)
    bias = base.split([n, n, n * n])
    pre = torch.sigmoid(mix[0] * scale[0] + bias[0]) + eps
    post = 2 * torch.sigmoid(mix[1] * scale[1] + bias[1])
    comb = sinkhorn((mix[2] * scale[2] + bias[2]).unflatten(-1, (n, n)), iters, eps)
    return (pre.unsqueeze(-1) * x).sum(-2).to(x.dtype), post, comb


def mhc_head(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, eps: float = 1e-6, norm_eps: float = 1e-6) -> Tensor:
    """As :func:`kernelforge.mhc_head`."""
    pre = torch.sigmoid(_projected(x, fn, norm_eps) * scale + base) + eps
    return (pre.unsqueeze(-1) * x).sum(-2).to(x.dtype)


def mhc_post(y: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """As :func:`kernelforge.mhc_post`."""
    mixed = comb.transpose(-1, -2) @ _wide(x)
    return (post.unsqueeze(-1) * y.unsqueeze(-2) + mixed).to(x.dtype)
