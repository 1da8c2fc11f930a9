"""Feed-forward layers in MXFP4: weights quantized once, activations on the way in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import kernelforge as kf

from .model import MiniLM, feed_forward_names


@dataclass(frozen=True)
class Mode:
    """How activations enter the product.

    Attributes:
        name: for people.
        a_format: the reference's name of the format.
        quantize: float32 [M, K] to (a, a_scale).
    """

    name: str
    a_format: str
    quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


def _bf16(x: torch.Tensor) -> tuple[torch.Tensor, None]:
    return x.to(torch.bfloat16), None


MODES = (
    Mode("W4A4", "e2m1", kf.quantize_mxfp4),
    Mode("W4A8", "e4m3_e8m0", kf.quantize_mxfp8),
    Mode("W4A16", "bf16", _bf16),
)


@dataclass(frozen=True)
class Weight:
    """A projection: packed FP4 uint8 [N, K/2], E8M0 uint8 [N, K/32], float32 bias [N]."""

    packed: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scale.nbytes

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The values as [N, K] of ``dtype``."""
        return kf.dequantize_mxfp4(self.packed, self.scale, dtype)


def quantize_weights(model: MiniLM) -> list[tuple[Weight, Weight]]:
    """The up and down projection of every layer."""

    def quantize(name: str) -> Weight:
        weight, bias = model.linear(name)
        return Weight(*kf.quantize_mxfp4(weight), bias)

    return [(quantize(up), quantize(down)) for up, down in map(feed_forward_names, range(model.layers))]


class QuantizedFeedForward:
    """The model's feed-forward network on MXFP4 weights."""

    def __init__(self, weights: list[tuple[Weight, Weight]], mode: Mode, backend: str | None = None) -> None:
        self.weights, self.mode, self.backend = weights, mode, backend

    def project(self, weight: Weight, x: torch.Tensor) -> torch.Tensor:
        """x [M, K] W^T + bias, float32 [M, N]."""
        a, a_scale = self.mode.quantize(x.contiguous())
        product = kf.mxfp4_gemm(a, a_scale, weight.packed, weight.scale, backend=self.backend)
        return product.float() + weight.bias

    def __call__(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        up, down = self.weights[layer]
        return self.project(down, F.gelu(self.project(up, x)))
