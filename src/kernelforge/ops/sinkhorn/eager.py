"""Sinkhorn normalization as a torch user writes it: what the op is timed against and, in float64, measured against."""

from __future__ import annotations

import torch


def sinkhorn(logits: torch.Tensor, iters: int = 20, eps: float = 1e-6) -> torch.Tensor:
    """As :func:`kernelforge.sinkhorn`, in the type of ``logits``."""
    m = logits.softmax(-1) + eps
    m = m / (m.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        m = m / (m.sum(-1, keepdim=True) + eps)
        m = m / (m.sum(-2, keepdim=True) + eps)
    return m
