"""Gradients of a layer over a group: each row goes to its expert's rank once more, with its token's gradient beside it.

Nothing is kept between the two passes but the operands: a row takes 97/32 bytes an element on its way out, 64/32 of
them the gradient's, and 4 on the way back, as a result does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from ...support import expect, meta
from .. import gradient, local
from ..schedule import dispatch_row, result_row
from .layer import Experts, Tokens, check, forward, quantized, travel, unpack
from .measured import Measured
from .program import Arrived, Compute
from .session import Session, session

WEIGHT_BYTES = 4
"""Of the gradient of a row's weight, behind the row's own."""


class Gradients(NamedTuple):
    """What :func:`backward` finds.

    Attributes:
        x: ``bfloat16`` [T, hidden], of this rank's tokens.
        topk_weight: float32 [T, k].
        w1, w2: float32 [E, 2 * inter, hidden] and [E, hidden, inter], of the values that this rank's experts stand for,
            summed over the tokens of all ranks; None where they were not asked for.
    """

    x: torch.Tensor
    topk_weight: torch.Tensor
    w1: torch.Tensor | None
    w2: torch.Tensor | None


def backward(
    opened: Session,
    grad: torch.Tensor,
    tokens: Tokens,
    experts: Experts,
    weights: bool,
    waves: int | str = "auto",
    schedule: str = "waves",
) -> Gradients:
    """Gradients of :func:`.layer.forward`; all ranks of the session must call, and raise as it does."""
    passage = _Backward(grad, tokens, experts, weights)
    results, rows = travel(opened, tokens, experts, waves, schedule, passage)
    found = results.view(torch.float32)
    grad_weight = torch.zeros_like(tokens.topk_weight)
    grad_weight.view(-1)[rows.pair] = found[:, -1]
    grad_x = local.combine(found[:, :-1].contiguous(), rows.inverse, experts.backend)
    return Gradients(grad_x, grad_weight, *(passage.of_weights or (None, None)))


class _Backward:
    """Rows and their output's gradients go to their experts; the rows' gradients come back."""

    number = 1

    def __init__(self, grad: torch.Tensor, tokens: Tokens, experts: Experts, weights: bool) -> None:
        self._grad, self._tokens, self._experts = grad, tokens, experts
        hidden = experts.hidden
        self.row_bytes = dispatch_row(hidden) + 2 * hidden
        self.result_bytes = result_row(hidden) + WEIGHT_BYTES
        self.of_weights: tuple[torch.Tensor, torch.Tensor] | None = None
        if weights:
            extents = (experts.local, 2 * experts.inter, hidden), (experts.local, hidden, experts.inter)
            w1, w2 = (grad.new_zeros(extent, dtype=torch.float32) for extent in extents)
            self.of_weights = w1, w2

    def check(self) -> None:
        check(self._tokens, self._experts)
        x = self._tokens.x
        expect("grad", meta(self._grad), (torch.bfloat16,), tuple(x.shape), x.device)

    def tokens(self, session: Session) -> torch.Tensor:
        grad = self._grad if len(self._grad) else self._grad.new_empty(self._grad.shape)  # strides of no rows are any
        return quantized(session.engine.buffers, self._tokens.x, self._experts.backend, grad.view(torch.uint8))

    def compute(self, session: Session, measured: Measured) -> Compute:
        return _Compute(session, self._experts, measured, self.of_weights)


class _Compute:
    """The gradients of a wave's experts."""

    def __init__(
        self,
        session: Session,
        experts: Experts,
        measured: Measured,
        of_weights: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        self._buffers, self._experts, self._measured = session.engine.buffers, experts, measured
        self._of_weights = of_weights
        self._on_cpu = session.engine.device.type == "cpu"

    def linear1(self, wave: int, arrived: Arrived) -> Any:
        experts, count = self._experts, arrived.rows.shape[0]
        if count == 0:
            return None
        begin = time.perf_counter()
        # A tensor of its own: under "two_stage" other waves come before this one's second half.
        grad = arrived.rows[:, dispatch_row(experts.hidden) :].contiguous()
        rows = gradient.Rows(*unpack(self._buffers, arrived, experts.hidden), grad.view(torch.bfloat16))
        limit = local.clamp_limit(experts.limit)
        weights = self._of_weights is not None
        inner = gradient.inner_gradient(rows, experts[:4], limit, weights, experts.backend)
        return rows, inner, time.perf_counter() - begin

    def linear2(self, wave: int, arrived: Arrived, state: Any) -> torch.Tensor:
        experts, count = self._experts, arrived.rows.shape[0]
        given = self._buffers.take("y", count, result_row(experts.hidden) + WEIGHT_BYTES)
        if state is None:
            return given
        rows, inner, seconds = state
        begin = time.perf_counter()
        found = given.view(torch.float32)
        gradient.outer_gradient(rows, inner, experts[:4], found[:, :-1], self._of_weights, experts.backend)
        found[:, -1] = inner.weight
        if self._on_cpu:
            self._measured.add(count, arrived.experts, seconds + time.perf_counter() - begin)
        return given


def mega_moe_over(
    group: dist.ProcessGroup,
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weight: torch.Tensor,
    weights: Sequence[torch.Tensor],
    swiglu_limit: float | None,
    waves: int | str,
    schedule: str,
    backend: str | None,
) -> torch.Tensor:
    """:func:`kernelforge.mega_moe` over a group; ``weights`` are w1, w1_scale, w2, w2_scale."""
    w1, w1_scale, w2, w2_scale = weights
    experts = Experts(w1, w1_scale, w2, w2_scale, swiglu_limit, backend)
    out: torch.Tensor = _Over.apply(x, topk_idx, topk_weight, experts, group, waves, schedule)
    return out


class _Over(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        x, topk_idx, topk_weight, experts, ctx.group, ctx.waves, ctx.schedule = arguments
        ctx.save_for_backward(x, topk_idx, topk_weight, *experts[:4])
        ctx.settings = experts[4:]
        opened = session(ctx.group, x.device)
        return forward(opened, Tokens(x, topk_idx, topk_weight), experts, ctx.waves, ctx.schedule)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        given = grads[0].contiguous(), ctx.saved_tensors, ctx.settings[0], False, ctx.waves, ctx.schedule
        found = layer_gradients_over(ctx.group, *given, ctx.settings[1])
        return found.x, None, found.topk_weight, None, None, None, None


def layer_gradients_over(
    group: dist.ProcessGroup,
    grad: torch.Tensor,
    operands: Sequence[torch.Tensor],
    swiglu_limit: float | None,
    weights: bool,
    waves: int | str,
    schedule: str,
    backend: str | None,
) -> Gradients:
    """:func:`kernelforge.ops.mega_moe.op.layer_gradients` over a group."""
    x, topk_idx, topk_weight, w1, w1_scale, w2, w2_scale = operands
    experts = Experts(w1, w1_scale, w2, w2_scale, swiglu_limit, backend)
    tokens = Tokens(x, topk_idx, topk_weight)
    return backward(session(group, x.device), grad, tokens, experts, weights, waves, schedule)
