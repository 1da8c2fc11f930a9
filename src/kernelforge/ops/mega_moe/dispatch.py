"""From the tokens of a mixture-of-experts layer to rows sorted by expert."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ...runtime import host_memory
from ..mx_quantize.op import quantize_mxfp8
from ..support import Meta, choose_device, expect
from . import local


class Operands(NamedTuple):
    """Tensors of a call, in the order of the schema."""

    x: torch.Tensor
    topk_idx: torch.Tensor
    topk_weight: torch.Tensor
    w1: torch.Tensor
    w1_scale: torch.Tensor
    w2: torch.Tensor
    w2_scale: torch.Tensor


@functools.lru_cache(maxsize=1024)
def check(
    x: Meta,
    topk_idx: Meta,
    topk_weight: Meta,
    w1: Meta,
    w1_scale: Meta,
    w2: Meta,
    w2_scale: Meta,
    backend: str | None,
) -> None:
    """Raise what :func:`kernelforge.mega_moe` states unless the descriptions fit together."""
    shape = local.check_experts(w1, w1_scale, w2, w2_scale, x)
    x = expect("x", x, (torch.bfloat16,), ("T", shape.hidden), x.device)
    topk_idx = expect("topk_idx", topk_idx, (torch.int32,), (x.shape[0], "k"), x.device)
    expect("topk_weight", topk_weight, (torch.float32,), tuple(topk_idx.shape), x.device)
    choose_device(backend, x.device)


class Dispatched(NamedTuple):
    """Tokens as rows sorted by expert.

    Attributes:
        plan: where each pair went.
        token: int64 [n], of each row.
        weight: float32 [n].
        x, x_scale: MXFP8 rows.
    """

    plan: local.Plan
    token: torch.Tensor
    weight: torch.Tensor
    x: torch.Tensor
    x_scale: torch.Tensor


def dispatch(
    x: torch.Tensor, topk_idx: torch.Tensor, topk_weight: torch.Tensor, experts: int, backend: str | None
) -> Dispatched:
    """Plan, quantize and gather; rows of dropped pairs, behind all experts, hold pair 0."""
    plan = local.dispatch_plan(topk_idx, experts, backend)
    codes, scale = quantize_mxfp8(x, backend=backend)
    pair = plan.order.clamp(min=0).long()
    token = pair // max(topk_idx.shape[1], 1)
    rows = host_memory.new_empty(codes, (token.shape[0], codes.shape[1]), torch.uint8)
    torch.index_select(codes.view(torch.uint8), 0, token, out=rows)
    rows = rows.view(torch.float8_e4m3fn)
    return Dispatched(plan, token, topk_weight.flatten()[pair], rows, scale.index_select(0, token))
