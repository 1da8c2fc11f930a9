"""Gradients of the indexer's logits: torch registration and autograd."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from ...backends import Executable
from ...numerics.window import CHUNK
from ..mx_quantize.op import dequantize_mxfp4, quantize_mxfp4
from ..support import LIBRARY, define, expect, meta
from .plans import BACKWARD_KERNELS, LOGIT_DTYPES, Given, Operands, Problem, check, compiled, given, home, tuned

Tensor = torch.Tensor
MOST_HEADS = 512
"""Heads under one exponent (contract C4)."""


def prepared(operands: Operands, quantize: bool, backend: str | None) -> Operands:
    """The operands of the logits' kernels: those given, or bfloat16 queries and keys taken to MXFP4.

    Raises:
        TypeError: ``quantize`` without bfloat16 ``q`` and ``k``.
    """
    if not quantize:
        return operands
    for name, tensor in (("q", operands.q), ("k", operands.k)):
        if tensor.dtype != torch.bfloat16:
            raise TypeError(f"quantize: given with {name} {meta(tensor)}, wanted bfloat16 {name}, not quantized yet")
    check(given(operands))
    q, q_scale = quantize_mxfp4(operands.q, backend=backend)
    k, k_scale = quantize_mxfp4(operands.k, backend=backend)
    return Operands(q, q_scale, k, k_scale, operands.weights, operands.kv_len)


class _Plan(NamedTuple):
    """Kernels of a checked call, and the tables they read."""

    problem: Problem
    queries: Executable
    entries: Executable
    first_entry: Tensor
    first_logit: Tensor
    starts: Tensor
    tiles: Tensor
    order: Tensor
    no_scale: Tensor


@functools.lru_cache(maxsize=512)
def _plan(known: Given, dtype: torch.dtype, backend: str | None) -> _Plan | None:
    """None where there is nothing to sum up."""
    problem = check(known)
    B, S, T, H, D, qk_format = problem
    if H > MOST_HEADS:
        raise ValueError(f"q: given {known.q}, so {H} heads; gradients are for at most {MOST_HEADS}")
    device, where = home(known, backend)
    if B * S * T == 0:
        return None
    parameters = {"H": H, "D": D, "qk_format": qk_format, "dtype": str(dtype).removeprefix("torch.")}
    kernels = {}
    for name in ("query_gradient", "entry_gradient"):
        tiles = tuned(name, device, problem)
        kernels[name] = compiled(f"{BACKWARD_KERNELS}:{name}", device, tiles, **parameters)

    def table(values: Tensor) -> Tensor:
        return values.to(torch.int32).to(where)

    rows = torch.arange(B * S)
    return _Plan(
        problem,
        kernels["query_gradient"],
        kernels["entry_gradient"],
        table(rows // S * T),
        table(rows * T),
        table(torch.arange(0, T, CHUNK)),
        table(_tiles(problem, tiles["block_T"])),
        table(torch.arange(S)),
        torch.zeros((1, 1), dtype=torch.uint8, device=where),
    )


def _tiles(problem: Problem, block_T: int) -> Tensor:
    """Rows of ``tiles``, see ``kernel_backward.py``."""
    B, S, T = problem[:3]
    begin = torch.arange(0, T, block_T).repeat(B)
    sequence = torch.arange(B).repeat_interleave(-(-T // block_T))
    return torch.stack((sequence * T, begin, torch.full_like(begin, T), sequence * S), -1)


def _values(x: Tensor, scale: Tensor | None, backend: str | None) -> Tensor:
    """Queries or keys as bfloat16."""
    return x if scale is None else dequantize_mxfp4(x, scale, torch.bfloat16, backend=backend)


def _impl(
    grad: Tensor,
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    kv_len: Tensor | None,
    quantize: bool,
    keys: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    operands = prepared(Operands(q, q_scale, k, k_scale, weights, kv_len), quantize, backend)
    plan = _plan(given(operands), grad.dtype, backend)
    expect("grad", meta(grad), LOGIT_DTYPES, (*q.shape[:-2], k.shape[-2]), q.device)
    if plan is None:
        shapes = _fake(grad, q, q_scale, k, k_scale, weights, kv_len, quantize, keys, backend)
        return shapes[0].zero_(), shapes[1].zero_(), shapes[2].zero_()
    B, S, T, H, D, _ = plan.problem
    seen = plan.first_entry.new_full((B * S,), T) if kv_len is None else kv_len.view(-1).clamp(0, T)
    queries = torch.stack((plan.first_entry, seen, plan.first_logit), -1)
    scales = (plan.no_scale if x is None else x.view(-1, x.shape[-1]) for x in (operands.q_scale, operands.k_scale))
    q_scales, k_scales = scales
    stored = operands.q.view(B * S * H, -1), q_scales, operands.k.view(B * T, -1), k_scales
    q_values = _values(operands.q, operands.q_scale, backend).view(-1, D)
    k_values = _values(operands.k, operands.k_scale, backend).view(-1, D)
    rows = weights.view(-1, H)
    dq, dk, dweights = torch.empty_like(q_values), torch.empty_like(k_values), torch.empty_like(rows)
    plan.queries(*stored, k_values, rows, grad.view(-1), queries, plan.starts, dq, dweights)
    if keys:
        plan.entries(*stored, q_values, rows, grad.view(-1), queries, plan.tiles, plan.order, dk)
    leading = q.shape[:-3]
    dk = dk.view(*leading, T, D) if keys else dk.new_empty(0)
    return dq.view(*leading, S, H, D), dk, dweights.view(weights.shape)


def _fake(
    grad: Tensor,
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    kv_len: Tensor | None,
    quantize: bool,
    keys: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    def values(x: Tensor) -> Tensor:
        D = x.shape[-1] if x.dtype == torch.bfloat16 else 2 * x.shape[-1]
        return x.new_empty((*x.shape[:-1], D), dtype=torch.bfloat16)

    return values(q), values(k) if keys else q.new_empty(0, dtype=torch.bfloat16), torch.empty_like(weights)


backward = define(
    "indexer_logits_backward(Tensor grad, Tensor q, Tensor? q_scale, Tensor k, Tensor? k_scale, Tensor weights, "
    "Tensor? kv_len, bool quantize, bool keys, str? backend) -> (Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.quantize, _, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted_q, _, wanted_k, _, wanted_weights, *_ = ctx.needs_input_grad
    dq, dk, dweights = backward(grad.contiguous(), *ctx.saved_tensors, ctx.quantize, wanted_k, ctx.backend)
    found = (dq if wanted_q else None, None, dk if wanted_k else None, None, dweights if wanted_weights else None)
    return (*found, None, None, None, None, None)


def register() -> None:
    """Make ``torch.ops.kernelforge.indexer_logits`` differentiable."""
    torch.library.register_autograd("kernelforge::indexer_logits", _gradient, setup_context=_save, lib=LIBRARY)
