"""Experts with MXFP4 weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from ..ops.mega_moe.op import layer_gradients, mega_moe
from ..ops.mx_quantize.op import quantize_mxfp4

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MXFP4Experts(torch.nn.Module):
    """The experts of a mixture-of-experts layer (:func:`kernelforge.mega_moe`).

    With ``trainable``, float32 master weights ``gate_up`` [E, 2 * inter, hidden] and ``down`` [E, hidden, inter] are
    parameters, quantized in every forward; their gradients pass the quantization straight through. Otherwise packed
    buffers ``w1``, ``w1_scale``, ``w2``, ``w2_scale`` (4.25 bits per parameter) are the state.

    Over a group, rank r of R holds experts ``[r * E, (r + 1) * E)`` of ``R * E``; results and gradients have the bits
    of one process that holds all of them, and all tokens in the order of the ranks. All ranks must run the forward
    pass, and in training the backward pass, of the same layers in the same order, with tokens or without.

    Args:
        experts: in all; a multiple of the number of ranks.
        hidden, inter: extents, multiples of 32.
        swiglu_limit: of the clamped SwiGLU; None for no clamp.
        trainable: keep master weights.
        group: ranks that share the experts; None for one process.
        waves, backend: as in :func:`kernelforge.mega_moe`.

    Raises:
        ValueError: ``experts`` is no multiple of the number of ranks.
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
        group: ProcessGroup | None = None,
        waves: int | str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.swiglu_limit, self.trainable, self.backend = swiglu_limit, trainable, backend
        self.group, self.waves = group, waves
        ranks = 1 if group is None else group.size()
        if experts < 1 or experts % ranks:
            raise ValueError(f"experts: given {experts}, wanted a multiple of {ranks} ranks")
        local = experts // ranks
        if trainable:
            self.gate_up = torch.nn.Parameter(torch.randn(local, 2 * inter, hidden) * hidden**-0.5)
            self.down = torch.nn.Parameter(torch.randn(local, hidden, inter) * inter**-0.5)
        else:
            for name, rows, columns in (("w1", 2 * inter, hidden), ("w2", hidden, inter)):
                self.register_buffer(name, torch.zeros((local, rows, columns // 2), dtype=torch.uint8))
                self.register_buffer(f"{name}_scale", torch.zeros((local, rows, columns // 32), dtype=torch.uint8))

    @classmethod
    def from_dense(
        cls,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        swiglu_limit: float | None = 10.0,
        *,
        trainable: bool = False,
        group: ProcessGroup | None = None,
        waves: int | str = "auto",
        backend: str | None = None,
    ) -> MXFP4Experts:
        """Experts from the weights of all of them, [experts, 2 * inter, hidden] (gate rows, then up rows) and
        [experts, hidden, inter]; each rank takes its own."""
        experts, both, hidden = gate_up.shape
        given: dict[str, Any] = {"trainable": trainable, "group": group, "waves": waves, "backend": backend}
        module = cls(experts, hidden, both // 2, swiglu_limit, **given)
        if group is not None:
            rank, ranks = group.rank(), group.size()
            gate_up, down = gate_up.chunk(ranks)[rank], down.chunk(ranks)[rank]
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
            out = _Trained.apply(tokens, chosen, weight, self.gate_up, self.down, self)
        else:
            packed = (self.w1, self.w1_scale, self.w2, self.w2_scale)
            out = self.apply_packed(tokens, chosen, weight, packed)
        return out.view(x.shape)

    def apply_packed(
        self, x: torch.Tensor, topk_idx: torch.Tensor, topk_weight: torch.Tensor, packed: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """:func:`kernelforge.mega_moe` with these weights (w1, w1_scale, w2, w2_scale) under this module's settings."""
        w1, w1_scale, w2, w2_scale = packed
        return mega_moe(
            x,
            topk_idx,
            topk_weight,
            w1,
            w1_scale,
            w2,
            w2_scale,
            self.group,
            self.waves,
            self.swiglu_limit,
            backend=self.backend,
        )


class _Trained(torch.autograd.Function):
    """The layer on master weights; packed ones are kept for the backward, at 4.25 bits per parameter."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        x, chosen, weight, gate_up, down, module = arguments
        packed = (*quantize_mxfp4(gate_up, backend=module.backend), *quantize_mxfp4(down, backend=module.backend))
        ctx.save_for_backward(x, chosen, weight, *packed)
        ctx.settings = module.group, module.waves, module.swiglu_limit, module.backend
        out: torch.Tensor = module.apply_packed(x, chosen, weight, packed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        group, waves, limit, backend = ctx.settings
        found = layer_gradients(grads[0].contiguous(), ctx.saved_tensors, limit, True, group, waves, "waves", backend)
        return found[0], None, found[1], found[2], found[3], None
