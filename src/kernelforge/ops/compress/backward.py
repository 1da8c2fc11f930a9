"""Compression backward: torch registration and autograd."""

from __future__ import annotations

from typing import Any

import torch

from ...runtime import host_memory
from ..support import LIBRARY, define, expect, meta
from .plans import compiled, rows
from .reference import CHUNK

Tensor = torch.Tensor
Grads = tuple[Tensor, Tensor, Tensor, Tensor]


def _backward_impl(
    grad: Tensor,
    kv: Tensor,
    gate: Tensor,
    position_bias: Tensor,
    norm_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    ratio: int,
    eps: float,
    backend: str | None,
) -> Grads:
    batch, _, width = kv.shape
    count, D = grad.shape[1], norm_weight.shape[0]
    expect("grad", meta(grad), (kv.dtype,), (batch, count, D), kv.device)
    overlap = width == 2 * D
    grads = [host_memory.empty_like(x) for x in (kv, gate)]
    _clear_unwritten(grads, lengths, count, ratio, D if overlap else 0)
    if grad.numel():
        slots = 2 * ratio if overlap else ratio
        parts = batch * -(-count // CHUNK)
        known = kv.new_empty((batch * count, 5, D), dtype=torch.float32)
        sums = kv.new_empty((parts, slots + 1, D), dtype=torch.float32)
        total = kv.new_empty((slots + 1, D), dtype=torch.float32)
        given = {"ratio": ratio, "overlap": overlap, "D": D}
        where = (kv.device, backend, kv.dtype)
        weights = (position_bias, norm_weight, cos, sin)
        compiled("entry_gradient", *where, **given, pairs=cos.shape[1], eps=eps)(
            rows(grad), rows(kv), rows(gate), *weights, lengths, known
        )
        compiled("token_gradient", *where, **given, chunk=CHUNK)(
            rows(kv), rows(gate), position_bias, lengths, known, rows(grads[0]), rows(grads[1]), sums
        )
        compiled("sum_of_parts", kv.device, backend, None, D=D)(rows(sums), total)
        # Slot j of [series, ratio] is row j % ratio of the bias, in the columns of its series.
        bias = total[:slots].view(-1, ratio, D).transpose(0, 1).reshape(ratio, width)
        return grads[0], grads[1], bias.contiguous(), total[slots].clone()
    return grads[0], grads[1], torch.zeros_like(position_bias), torch.zeros_like(norm_weight)


def _clear_unwritten(grads: list[Tensor], lengths: Tensor, count: int, ratio: int, earlier: int) -> None:
    """Clear what is of no entry: tokens past the last window, and of its own the ``earlier`` channels, which the window
    after it would take. Elsewhere than on the CPU all is cleared: to know the lengths would be to wait."""
    for grad in grads:
        if grad.device.type != "cpu":
            grad.zero_()
            continue
        for sequence, length in zip(grad, lengths.tolist(), strict=True):
            end = max(min(length // ratio, count), 0) * ratio
            sequence[end:].zero_()
            sequence[max(end - ratio, 0) : end, :earlier].zero_()


def _backward_fake(
    grad: Tensor, kv: Tensor, gate: Tensor, position_bias: Tensor, norm_weight: Tensor, *_: Any
) -> Grads:
    kv_grad, gate_grad, bias_grad, weight_grad = (torch.empty_like(x) for x in (kv, gate, position_bias, norm_weight))
    return kv_grad, gate_grad, bias_grad, weight_grad


compress_backward = define(
    "compress_backward(Tensor grad, Tensor kv, Tensor gate, Tensor position_bias, Tensor norm_weight, Tensor cos, "
    "Tensor sin, Tensor lengths, int ratio, float eps, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, _, _, lengths, ctx.ratio, _, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(*tensors, lengths)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = compress_backward(grad.contiguous(), *ctx.saved_tensors, ctx.ratio, ctx.eps, ctx.backend)
    return (*found, *[None] * 10)


def register() -> None:
    """Make ``torch.ops.kernelforge.compress`` differentiable in its first four arguments."""
    torch.library.register_autograd("kernelforge::compress", _gradient, setup_context=_save, lib=LIBRARY)
