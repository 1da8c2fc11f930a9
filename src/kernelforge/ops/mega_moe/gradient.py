"""Gradients of a mixture-of-experts layer, quantizations passed straight through."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..mx_quantize.op import dequantize_mxfp4, mxfp8_values
from ..mxfp4_gemm.op import grouped_mxfp4_gemm
from ..sliced_gemm.op import product, product_over_rows
from ..support import choose_device, define, expect, meta
from . import local
from .dispatch import Operands, check, dispatch

_ACTIVATION = f"{local.KERNELS}.backward:moe_activation_backward"


def activation_backward(
    gate_up: torch.Tensor,
    grad: torch.Tensor,
    weight: torch.Tensor,
    limit: float,
    grad_gate_up: torch.Tensor,
    grad_weight: torch.Tensor,
    backend: str | None,
) -> None:
    """Gradients of gate and up, into bfloat16 [m, 2 * inter], and of the rows' weights, into float32 [m]."""
    device = choose_device(backend, grad.device)
    run = local.tuned(_ACTIVATION, device, "activation_backward", 0, 0, inter=grad.shape[1], limit=limit)
    run(gate_up, grad, weight, grad_gate_up, grad_weight)


Experts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""w1, w1_scale, w2, w2_scale."""


class Rows(NamedTuple):
    """What an expert's gradients are made of; at least one row, sorted by expert.

    Attributes:
        x, x_scale: MXFP8 rows, ``float8_e4m3fn`` [n, hidden] and scale bytes [n, hidden/32].
        offsets: int32 [E + 1], from 0 to n.
        weight: float32 [n].
        grad: ``bfloat16`` [n, hidden], of the token that a row belongs to.
    """

    x: torch.Tensor
    x_scale: torch.Tensor
    offsets: torch.Tensor
    weight: torch.Tensor
    grad: torch.Tensor

    def parts(self) -> Iterator[tuple[int, slice]]:
        """Experts with rows, and which."""
        offsets = self.offsets.tolist()
        for expert, (begin, end) in enumerate(itertools.pairwise(offsets)):
            if end > begin:
                yield expert, slice(begin, end)


class Inner(NamedTuple):
    """Gradients between the layers of an expert.

    Attributes:
        gate_up: ``bfloat16`` [n, 2 * inter].
        weight: float32 [n], of the rows' weights.
        x, h: ``bfloat16`` values of rows and activation, where weights are to have gradients.
    """

    gate_up: torch.Tensor
    weight: torch.Tensor
    x: torch.Tensor | None
    h: torch.Tensor | None


def inner_gradient(rows: Rows, experts: Experts, limit: float, weights: bool, backend: str | None) -> Inner:
    """From the outputs' gradients to those of gate, up and the rows' weights.

    Expert by expert: only one expert's weights exist as bfloat16 at a time.
    """
    w1, w1_scale, w2, w2_scale = experts
    gate_up = grouped_mxfp4_gemm(rows.x, rows.x_scale, w1, w1_scale, rows.offsets, torch.float32, backend=backend)
    x = h = None
    if weights:
        x = mxfp8_values(rows.x, rows.x_scale)
        h = mxfp8_values(*local.activation(*rows[:4], *experts, limit=limit, backend=backend))
    found = Inner(gate_up.new_empty(gate_up.shape, dtype=torch.bfloat16), torch.empty_like(rows.weight), x, h)
    for expert, part in rows.parts():
        wide = dequantize_mxfp4(w2[expert], w2_scale[expert], torch.bfloat16, backend=backend)
        grad_h = product(rows.grad[part], wide, turned=True, backend=backend)
        activation_backward(
            gate_up[part], grad_h, rows.weight[part], limit, found.gate_up[part], found.weight[part], backend
        )
    return found


def outer_gradient(
    rows: Rows,
    inner: Inner,
    experts: Experts,
    grad_rows: torch.Tensor,
    grad_weights: tuple[torch.Tensor, torch.Tensor] | None,
    backend: str | None,
) -> None:
    """From the gradients of gate and up to those of rows and weights.

    Args:
        grad_rows: written, float32 [at least n, hidden].
        grad_weights: written where given, float32 [E, 2 * inter, hidden] and [E, hidden, inter], but for experts
            without rows.
    """
    w1, w1_scale, _, _ = experts
    for expert, part in rows.parts():
        wide = dequantize_mxfp4(w1[expert], w1_scale[expert], torch.bfloat16, backend=backend)
        grad_rows[part] = product(inner.gate_up[part], wide, turned=True, backend=backend)
        if grad_weights is not None:
            assert inner.x is not None
            assert inner.h is not None
            grad_weights[0][expert] = product_over_rows(inner.gate_up[part], inner.x[part], backend=backend)
            grad_weights[1][expert] = product_over_rows(rows.grad[part], inner.h[part], backend=backend)


def _impl(
    grad: torch.Tensor,
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    limit: float,
    weights: bool,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    operands = Operands(x, topk_idx, topk_weight, w1, w1_scale, w2, w2_scale)
    check(*(meta(tensor) for tensor in operands), backend)
    expect("grad", meta(grad), (torch.bfloat16,), tuple(x.shape), x.device)
    _, grad_weight, grad_w1, grad_w2 = _fake(grad, *operands, limit, weights, backend)
    for tensor in (grad_weight, grad_w1, grad_w2):
        tensor.zero_()
    sent = dispatch(x, topk_idx, topk_weight, w1.shape[0], backend)
    used = int(sent.plan.offsets[-1])
    grad_rows = x.new_zeros((len(sent.token), x.shape[1]), dtype=torch.float32)
    if used:
        rows = Rows(sent.x[:used], sent.x_scale[:used], sent.plan.offsets, sent.weight[:used], grad[sent.token[:used]])
        experts = (w1, w1_scale, w2, w2_scale)
        found = inner_gradient(rows, experts, limit, weights, backend)
        outer_gradient(rows, found, experts, grad_rows, (grad_w1, grad_w2) if weights else None, backend)
        grad_weight.view(-1)[sent.plan.order[:used].long()] = found.weight
    return local.combine(grad_rows, sent.plan.inverse, backend), grad_weight, grad_w1, grad_w2


def _fake(
    grad: torch.Tensor,
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    limit: float,
    weights: bool,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    experts = (w1.shape[0] if weights else 0, w1.shape[1], x.shape[1])
    grad_w1 = x.new_empty(experts, dtype=torch.float32)
    grad_w2 = x.new_empty((experts[0], x.shape[1], w1.shape[1] // 2), dtype=torch.float32)
    return torch.empty_like(x), torch.empty_like(topk_weight), grad_w1, grad_w2


backward = define(
    "mega_moe_backward(Tensor grad, Tensor x, Tensor topk_idx, Tensor topk_weight, Tensor w1, Tensor w1_scale, "
    "Tensor w2, Tensor w2_scale, float limit, bool weights, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)
