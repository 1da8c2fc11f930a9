"""Hyper-connections that do not keep their streams, and that add to gradients in the written order.

Streams that leave a block are a function of what its end keeps anyway: the streams before, the block's output, the
gates. So a chain of blocks need keep the streams at its start alone; the backward pass makes the others again, one
``mhc_post`` each, and drops them as it goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from ..ops.mhc import torch_ops

Tensor = torch.Tensor
_ORIGIN = "_kernelforge_streams"
"""Attribute of a tensor of streams: how to make it again."""


class Options(NamedTuple):
    """A module's settings, as in :class:`kernelforge.nn.HyperConnection`."""

    iters: int
    eps: float
    norm_eps: float
    backend: str | None
    recompute: bool
    accumulate_in_order: bool
    head: bool = False


@dataclass
class Streams:
    """Streams that can be had when they are needed.

    Attributes:
        value: the streams, or None while nothing needs them.
        before: the streams before the block; None where ``value`` is kept for good.
        inputs: the block's output, post and comb.
        backend: as in :func:`kernelforge.mhc_post`.
    """

    value: Tensor | None
    before: Streams | None = None
    inputs: tuple[Tensor, Tensor, Tensor] | None = None
    backend: str | None = None

    def make(self) -> Tensor:
        """The streams, made again from the nearest ones that are there."""
        chain = [self]
        while chain[-1].value is None:
            assert chain[-1].before is not None
            chain.append(chain[-1].before)
        for streams in reversed(chain[:-1]):
            assert streams.inputs is not None
            assert streams.before is not None
            assert streams.before.value is not None
            y, post, comb = streams.inputs
            streams.value = torch_ops.post(y, streams.before.value, post, comb, streams.backend)
        assert self.value is not None
        return self.value

    def drop(self) -> None:
        """Forget streams that can be made again."""
        if self.before is not None:
            self.value = None


def _origin(x: Tensor, options: Options) -> Streams:
    found: Streams | None = getattr(x, _ORIGIN, None)
    if found is None or not options.recompute:
        found = Streams(x.detach())
    return found


class _Pre(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, origin: Streams, options: Options
    ) -> tuple[Tensor, ...]:
        weights = (x, fn, scale, base)
        if options.head:
            collapsed, *kept = torch_ops.head(*weights, options.eps, options.norm_eps, options.backend)
            gates: tuple[Tensor, ...] = ()
        else:
            collapsed, *gates, raw, inverse_rms = torch_ops.pre(
                *weights, options.iters, options.eps, options.norm_eps, options.backend
            )
            kept = [raw, inverse_rms]
        ctx.save_for_backward(fn, scale, base, *kept)
        ctx.origin, ctx.options, ctx.parameters = origin, options, (fn, scale, base)
        return (collapsed, *gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        options: Options = ctx.options
        x = ctx.origin.make()
        grads = tuple(grad.contiguous() for grad in grads)
        start = [None, None, None]
        if options.accumulate_in_order:
            start = [parameter.grad for parameter in ctx.parameters]
        if options.head:
            found = torch_ops.head_backward(*grads, x, *ctx.saved_tensors, *start, options.eps, options.backend)
        else:
            found = torch_ops.pre_backward(
                *grads, x, *ctx.saved_tensors, *start, options.iters, options.eps, options.backend
            )
        ctx.origin.drop()
        x_grad, *sums = found
        if options.accumulate_in_order:
            for parameter, total in zip(ctx.parameters, sums, strict=True):
                parameter.grad = total
            sums = [None, None, None]
        return (x_grad, *sums, None, None)


class _Post(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, post: Tensor, comb: Tensor, origin: Streams, options: Options
    ) -> Tensor:
        ctx.save_for_backward(y, post, comb)
        ctx.origin, ctx.options = origin, options
        out: Tensor = torch_ops.post(y, x, post, comb, options.backend)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, post, comb = ctx.saved_tensors
        found = torch_ops.post_backward(grad.contiguous(), y, ctx.origin.make(), post, comb, ctx.options.backend)
        return (*found, None, None)


def pre_keeping_no_streams(
    x: Tensor, fn: Tensor, scale: Tensor, base: Tensor, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """``mhc_pre`` (``mhc_head``: the first result alone) under a module's options."""
    found: tuple[Tensor, Tensor, Tensor] = _Pre.apply(x, fn, scale, base, _origin(x, options), options)
    return found


def post_keeping_no_streams(y: Tensor, x: Tensor, post: Tensor, comb: Tensor, options: Options) -> Tensor:
    """``mhc_post`` under a module's options; the result knows how to be made again."""
    origin = _origin(x, options)
    out: Tensor = _Post.apply(y, x, post, comb, origin, options)
    kept = (y.detach(), post.detach(), comb.detach())
    setattr(out, _ORIGIN, Streams(None, origin, kept, options.backend))
    return out
