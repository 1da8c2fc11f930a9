"""Entries and their gradients against float64, on normal, heavy-tailed and outlier data, beside eager torch.

The reference defines the bits, so its accuracy is every device's.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compress_oracle import entries_in_double

from kernelforge.ops.compress import eager, reference

D, PAIRS, TOKENS = 64, 16, 512
KINDS = {"csa": (4, True), "hca": (128, False)}
DATA = ("normal", "student", "outlier")


def drawn(kind: str, data: str) -> list[torch.Tensor]:
    """kv, gate, position_bias, norm_weight, cos, sin in float32; the first two hold bfloat16 values."""
    ratio, overlap = KINDS[kind]
    draw = np.random.default_rng(len(data))
    width = 2 * D if overlap else D

    def tokens() -> torch.Tensor:
        x = draw.standard_t(3, (1, TOKENS, width)) if data == "student" else draw.standard_normal((1, TOKENS, width))
        if data == "outlier":
            x[..., draw.integers(0, width, 4)] *= 100
        return torch.from_numpy(x.astype(np.float32)).bfloat16().float()

    angles = torch.outer(torch.arange(float(TOKENS)), 10000.0 ** (-torch.arange(PAIRS) / PAIRS))
    bias, weight = (torch.from_numpy(draw.standard_normal(s).astype(np.float32)) for s in ((ratio, width), (D,)))
    return [tokens(), tokens(), bias, weight, angles.cos(), angles.sin()]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", KINDS)
def test_entries_are_nearer_to_float64_than_eager_torch(kind, data):
    ratio, overlap = KINDS[kind]
    x = drawn(kind, data)
    exact = entries_in_double(*(tensor.double() for tensor in x), ratio, overlap)
    kv, gate, *rest = (tensor.numpy() for tensor in x)
    found = torch.from_numpy(reference.compress(kv[0], gate[0], *rest, ratio, overlap))[None]
    assert error(found, exact) < 1e-6
    narrow = eager.compress(x[0].bfloat16(), x[1].bfloat16(), *x[2:], ratio)
    assert error(found.bfloat16(), exact) < error(narrow, exact)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_float64_autograd(kind, data):
    ratio, overlap = KINDS[kind]
    x = drawn(kind, data)
    wide = [tensor.double().requires_grad_(i < 4) for i, tensor in enumerate(x)]
    entries = entries_in_double(*wide, ratio, overlap)
    grad = torch.randn(entries.shape, generator=torch.Generator().manual_seed(0))
    entries.backward(grad.double())
    kv, gate, *rest = (tensor.numpy() for tensor in x)
    found = reference.compress_backward(grad[0].numpy(), kv[0], gate[0], *rest, ratio, overlap)
    bias, weight = reference.add_sequences([found], ratio, overlap)
    for got, want in zip((found.kv[None], found.gate[None], bias, weight), wide, strict=False):
        assert error(torch.from_numpy(got), want.grad) < 2e-6
