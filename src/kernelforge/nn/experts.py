"""Experts with MXFP4 weights."""

from __future__ import annotations

from typing import Any

import torch

from ..ops.mega_moe.gradient import backward
from ..ops.mega_moe.local import clamp_limit
from ..ops.mega_moe.op import mega_moe
from ..ops.mx_quantize.op import quantize_mxfp4


class MXFP4Experts(torch.nn.Module):
    """The experts of a mixture-of-experts layer (:func:`kernelforge.mega_moe`).

    With ``trainable``, float32 master weights ``gate_up`` [E, 2 * inter, hidden] and ``down`` [E, hidden, inter] are
    parameters, quantized in every forward; their gradients pass the quantization straight through. Otherwise packed
    buffers ``w1``, ``w1_scale``, ``w2``, ``w2_scale`` (4.25 bits per parameter) are the state.

    Args:
        experts, hidden, inter: extents; hidden and inter are multiples of 32.
        swiglu_limit: of the clamped SwiGLU; None for no clamp.
        trainable: keep master weights.
        backend: as in :func:`kernelforge.mega_moe`.
    """

    w1: torch.Tensor
    w1_scale: torch.Tensor
    w2: torch.Tensor
    w2_scale: torch.Tensor

    def __init__(
        self,
        experts: int,
        hidden: int,
        inter: int,
        swiglu_limit: float | None = 10.0,
        *,
        trainable: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.swiglu_limit, self.trainable, self.backend = swiglu_limit, trainable, backend
        if trainable:
            self.gate_up = torch.nn.Parameter(torch.randn(experts, 2 * inter, hidden) * hidden**-0.5)
            self.down = torch.nn.Parameter(torch.randn(experts, hidden, inter) * inter**-0.5)
        else:
            for name, rows, columns in (("w1", 2 * inter, hidden), ("w2", hidden, inter)):
                self.register_buffer(name, torch.zeros((experts, rows, columns // 2), dtype=torch.uint8))
                self.register_buffer(f"{name}_scale", torch.zeros((experts, rows, columns // 32), dtype=torch.uint8))

    @classmethod
    def from_dense(
        cls,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        swiglu_limit: float | None = 10.0,
        *,
        trainable: bool = False,
        backend: str | None = None,
    ) -> MXFP4Experts:
        """Experts from weights [E, 2 * inter, hidden] (gate rows, then up rows) and [E, hidden, inter]."""
        experts, both, hidden = gate_up.shape
        module = cls(experts, hidden, both // 2, swiglu_limit, trainable=trainable, backend=backend)
        if trainable:
            with torch.no_grad():
                module.gate_up.copy_(gate_up)
                module.down.copy_(down)
        else:
            module.w1, module.w1_scale = quantize_mxfp4(gate_up.detach().contiguous(), backend=backend)
            module.w2, module.w2_scale = quantize_mxfp4(down.detach().contiguous(), backend=backend)
        return module

    def forward(self, x: torch.Tensor, topk_idx: torch.Tensor, topk_weight: torch.Tensor) -> torch.Tensor:
        """``bfloat16`` [..., hidden] of tokens [..., hidden] with experts and weights [..., k]."""
        tokens = x.reshape(-1, x.shape[-1])
        chosen = topk_idx.reshape(-1, topk_idx.shape[-1]).int()
        weight = topk_weight.reshape(-1, topk_weight.shape[-1]).float()
        if self.trainable:
            limit = clamp_limit(self.swiglu_limit)
            out = _Trained.apply(tokens, chosen, weight, self.gate_up, self.down, limit, self.backend)
        else:
            packed = (self.w1, self.w1_scale, self.w2, self.w2_scale)
            out = mega_moe(tokens, chosen, weight, *packed, swiglu_limit=self.swiglu_limit, backend=self.backend)
        return out.view(x.shape)


class _Trained(torch.autograd.Function):
    """The layer on master weights; packed ones are kept for the backward, at 4.25 bits per parameter."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        x, chosen, weight, gate_up, down, ctx.limit, ctx.backend = arguments
        packed = (*quantize_mxfp4(gate_up, backend=ctx.backend), *quantize_mxfp4(down, backend=ctx.backend))
        ctx.save_for_backward(x, chosen, weight, *packed)
        return mega_moe(x, chosen, weight, *packed, swiglu_limit=ctx.limit, backend=ctx.backend)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = backward(grads[0].contiguous(), *ctx.saved_tensors, ctx.limit, True, ctx.backend)
        return found[0], None, found[1], found[2], found[3], None, None
