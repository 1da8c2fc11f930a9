"""Quantization-aware training: weights as MXFP4 would hold them, gradients straight through."""

from __future__ import annotations

from typing import Any

import torch

from ..support import require_tensor
from .op import dequantize_mxfp4, quantize_mxfp4

BLOCK = 32
_LARGEST = 6.0


class _FakeQuant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        w, scale_rule, stop_saturated, backend = arguments
        packed, scale = quantize_mxfp4(w, scale_rule, backend=backend)
        ctx.saturated = None
        if stop_saturated:
            # A power of two: the product is exact. Scale byte 0 is a block of zeros, 0xFF one that is not finite.
            limit = (scale.int() << 23).view(torch.float32) * _LARGEST
            ctx.saturated = w.float().abs().unflatten(-1, (-1, BLOCK)).gt(limit[..., None]).flatten(-2)
        return dequantize_mxfp4(packed, scale, w.dtype, backend=backend)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad = grads[0]
        return (grad if ctx.saturated is None else grad.masked_fill(ctx.saturated, 0)), None, None, None


def fake_quant_mxfp4(
    w: torch.Tensor, scale_rule: str = "ceil", *, stop_saturated: bool = False, backend: str | None = None
) -> torch.Tensor:
    """The values that ``w`` has in MXFP4, differentiable.

    Args:
        w: [..., K], K a multiple of 32, contiguous; ``float32``, ``bfloat16`` or ``float16``: the master weights.
        scale_rule: as in :func:`kernelforge.quantize_mxfp4`.
        stop_saturated: no gradient for elements beyond 6 times their block's scale (under ``"floor"``; under ``"ceil"``
            none are). Otherwise the gradient passes as it is.
        backend: as in :func:`kernelforge.quantize_mxfp4`.

    Returns:
        A tensor like ``w``: ``dequantize_mxfp4(*quantize_mxfp4(w))``.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`kernelforge.quantize_mxfp4`.
    """
    require_tensor("w", w)
    result: torch.Tensor = _FakeQuant.apply(w, scale_rule, stop_saturated, backend)
    return result
