"""Hyper-connections under ``torch.ops.kernelforge``: kernels launched, fakes, autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...runtime import host_memory
from ..support import LIBRARY, define, expect, meta
from . import plans
from .plans import Parameters, Problem

Tensor = torch.Tensor


def _collapse(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    iters: int,
    eps: float,
    norm_eps: float,
    backend: str | None,
    head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    p = plans.pre_problem(meta(x), meta(fn), meta(scale), meta(base), iters, eps, norm_eps, backend, head)
    collapsed, post, comb, raw, inverse_rms = _pre_outputs(x, head, host_memory.new_empty)
    if p.tokens:
        chunks, length = p.weight_tile
        height = -(-p.outputs // 16) * 16
        slices = torch.empty((chunks * 3 * height, length), dtype=torch.int8, device=x.device)
        exponent = torch.empty((chunks, height), dtype=torch.int32, device=x.device)
        plans.kernel(p, "weights")(fn, slices, exponent)
        unwritten = x.new_empty((p.tokens, 1), dtype=torch.float32) if head else None
        plans.kernel(p, "pre", Parameters(iters, eps, norm_eps))(
            x.view(p.tokens, -1),
            slices,
            exponent,
            scale,
            base,
            collapsed.view(p.tokens, -1),
            post.view(p.tokens, -1) if unwritten is None else unwritten,
            comb.view(p.tokens, -1) if unwritten is None else unwritten,
            raw.view(p.tokens, -1),
            inverse_rms.view(p.tokens, 1),
        )
    return collapsed, post, comb, raw, inverse_rms


def _pre_outputs(
    x: Tensor, head: bool, new_empty: Callable[[Tensor, Sequence[int]], Tensor] = Tensor.new_empty
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Collapsed stream, post, comb, and what the backward pass needs: projections and 1/rms."""
    *leading, n, C = x.shape
    gates, outputs = (0, n) if head else (n, n * (n + 2))
    return (
        new_empty(x, (*leading, C)),
        x.new_empty((*leading, gates), dtype=torch.float32),
        x.new_empty((*leading, gates, n), dtype=torch.float32),
        x.new_empty((*leading, outputs), dtype=torch.float32),
        x.new_empty(leading, dtype=torch.float32),
    )


def _pre_impl(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _collapse(x, fn, scale, base, iters, eps, norm_eps, backend, False)


def _pre_fake(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, iters: int, eps: float, norm_eps: float, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _pre_outputs(x, False)


def _head_impl(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, eps: float, norm_eps: float, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    collapsed, _, _, raw, inverse_rms = _collapse(x, fn, scale, base, 1, eps, norm_eps, backend, True)
    return collapsed, raw, inverse_rms


def _head_fake(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, eps: float, norm_eps: float, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    collapsed, _, _, raw, inverse_rms = _pre_outputs(x, True)
    return collapsed, raw, inverse_rms


def _backward(
    collapsed_grad: Tensor,
    gate_grads: tuple[Tensor, Tensor] | None,
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    raw: Tensor,
    inverse_rms: Tensor,
    start: tuple[Tensor | None, Tensor | None, Tensor | None],
    iters: int,
    eps: float,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    head = gate_grads is None
    p = plans.pre_problem(meta(x), meta(fn), meta(scale), meta(base), iters, eps, eps, backend, head)
    expect("collapsed_grad", meta(collapsed_grad), (x.dtype,), (*p.leading, p.C), x.device)
    starts = []
    for name, given, like in zip(("fn_start", "scale_start", "base_start"), start, (fn, scale, base), strict=True):
        if given is not None:
            expect(name, meta(given), (torch.float32,), tuple(like.shape), x.device)
        starts.append(torch.zeros_like(like) if given is None else given)
    x_grad, fn_grad = host_memory.empty_like(x), torch.empty_like(fn)
    sums = torch.cat((starts[2], starts[1])).view(1, -1)
    if p.tokens == 0:
        return x_grad, starts[0].clone(), starts[1].clone(), starts[2].clone()
    raw_grad = raw.new_empty((p.tokens, p.outputs))
    terms = raw.new_empty((p.tokens, p.outputs + p.scales))
    unread = raw.new_zeros((p.tokens, 1)) if head else None
    post_grad, comb_grad = gate_grads if gate_grads is not None else (unread, unread)
    streams = x.view(p.tokens, -1)
    plans.kernel(p, "pre_backward", Parameters(iters, eps))(
        collapsed_grad.view(p.tokens, -1),
        post_grad.view(p.tokens, -1),  # type: ignore[union-attr]
        comb_grad.view(p.tokens, -1),  # type: ignore[union-attr]
        streams,
        fn,
        scale,
        base,
        raw.view(p.tokens, -1),
        inverse_rms.view(p.tokens, 1),
        x_grad.view(p.tokens, -1),
        raw_grad,
        terms,
    )
    bounds = plans.token_chunks(p.tokens, p.sequence, x.device)
    plans.kernel(p, "weight_gradient")(raw_grad, streams, bounds, starts[0], fn_grad)
    total = torch.empty_like(sums)
    plans.kernel(p, "token_sum")(terms, bounds, sums, total)
    return x_grad, fn_grad, total[0, p.outputs :].clone(), total[0, : p.outputs].clone()


def _pre_backward_impl(
    collapsed_grad: Tensor,
    post_grad: Tensor,
    comb_grad: Tensor,
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    raw: Tensor,
    inverse_rms: Tensor,
    fn_start: Tensor | None,
    scale_start: Tensor | None,
    base_start: Tensor | None,
    iters: int,
    eps: float,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    start = (fn_start, scale_start, base_start)
    grads = (post_grad, comb_grad)
    return _backward(collapsed_grad, grads, x, fn, scale, base, raw, inverse_rms, start, iters, eps, backend)


def _head_backward_impl(
    collapsed_grad: Tensor,
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    raw: Tensor,
    inverse_rms: Tensor,
    fn_start: Tensor | None,
    scale_start: Tensor | None,
    base_start: Tensor | None,
    eps: float,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    start = (fn_start, scale_start, base_start)
    return _backward(collapsed_grad, None, x, fn, scale, base, raw, inverse_rms, start, 1, eps, backend)


def _pre_backward_fake(
    collapsed_grad: Tensor,
    post_grad: Tensor,
    comb_grad: Tensor,
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(fn), torch.empty_like(scale), torch.empty_like(base)


def _head_backward_fake(
    collapsed_grad: Tensor, x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(fn), torch.empty_like(scale), torch.empty_like(base)


def _flat(p: Problem, *tensors: Tensor) -> list[Tensor]:
    return [tensor.view(p.tokens, -1) for tensor in tensors]


def _post_impl(y: Tensor, x: Tensor, post: Tensor, comb: Tensor, backend: str | None) -> Tensor:
    p = plans.post_problem(meta(y), meta(x), meta(post), meta(comb), backend)
    out = host_memory.empty_like(x)
    if p.tokens:
        plans.kernel(p, "post")(*_flat(p, y, x, post, comb, out))
    return out


def _post_fake(y: Tensor, x: Tensor, post: Tensor, comb: Tensor, backend: str | None) -> Tensor:
    return torch.empty_like(x)


def _post_backward_impl(
    grad: Tensor, y: Tensor, x: Tensor, post: Tensor, comb: Tensor, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = plans.post_problem(meta(y), meta(x), meta(post), meta(comb), backend)
    expect("grad", meta(grad), (x.dtype,), tuple(x.shape), x.device)
    grads = (
        host_memory.empty_like(y),
        host_memory.empty_like(x),
        torch.empty_like(post),
        torch.empty_like(comb),
    )
    if p.tokens:
        plans.kernel(p, "post_backward")(*_flat(p, grad, y, x, post, comb, *grads))
    return grads


def _post_backward_fake(
    grad: Tensor, y: Tensor, x: Tensor, post: Tensor, comb: Tensor, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(y), torch.empty_like(x), torch.empty_like(post), torch.empty_like(comb)


pre = define(
    "mhc_pre(Tensor x, Tensor fn, Tensor scale, Tensor base, int iters, float eps, float norm_eps, str? backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _pre_impl,
    _pre_fake,
)
head = define(
    "mhc_head(Tensor x, Tensor fn, Tensor scale, Tensor base, float eps, float norm_eps, str? backend)"
    " -> (Tensor, Tensor, Tensor)",
    _head_impl,
    _head_fake,
)
post = define("mhc_post(Tensor y, Tensor x, Tensor post, Tensor comb, str? backend) -> Tensor", _post_impl, _post_fake)
pre_backward = define(
    "mhc_pre_backward(Tensor collapsed_grad, Tensor post_grad, Tensor comb_grad, Tensor x, Tensor fn, Tensor scale, "
    "Tensor base, Tensor raw, Tensor inverse_rms, Tensor? fn_start, Tensor? scale_start, Tensor? base_start, "
    "int iters, float eps, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _pre_backward_impl,
    _pre_backward_fake,
)
head_backward = define(
    "mhc_head_backward(Tensor collapsed_grad, Tensor x, Tensor fn, Tensor scale, Tensor base, Tensor raw, "
    "Tensor inverse_rms, Tensor? fn_start, Tensor? scale_start, Tensor? base_start, float eps, str? backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _head_backward_impl,
    _head_backward_fake,
)
post_backward = define(
    "mhc_post_backward(Tensor grad, Tensor y, Tensor x, Tensor post, Tensor comb, str? backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _post_backward_impl,
    _post_backward_fake,
)


def _save_pre(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.iters, ctx.eps, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[3:])
    ctx.mark_non_differentiable(*output[3:])


def _pre_gradient(
    ctx: Any, collapsed_grad: Tensor, post_grad: Tensor, comb_grad: Tensor, *_: Any
) -> tuple[Tensor | None, ...]:
    grads = [grad.contiguous() for grad in (collapsed_grad, post_grad, comb_grad)]
    found = pre_backward(*grads, *ctx.saved_tensors, None, None, None, ctx.iters, ctx.eps, ctx.backend)
    return (*found, None, None, None, None)


def _save_head(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _head_gradient(ctx: Any, collapsed_grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    found = head_backward(collapsed_grad.contiguous(), *ctx.saved_tensors, None, None, None, ctx.eps, ctx.backend)
    return (*found, None, None, None)


def _save_post(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _post_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*post_backward(grad.contiguous(), *ctx.saved_tensors, ctx.backend), None)


torch.library.register_autograd("kernelforge::mhc_pre", _pre_gradient, setup_context=_save_pre, lib=LIBRARY)
torch.library.register_autograd("kernelforge::mhc_head", _head_gradient, setup_context=_save_head, lib=LIBRARY)
torch.library.register_autograd("kernelforge::mhc_post", _post_gradient, setup_context=_save_post, lib=LIBRARY)
