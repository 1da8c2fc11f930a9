"""Manifold-constrained hyper-connections as modules around a model's blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..ops.mhc.op import mhc_head, mhc_post, mhc_pre
from ..ops.support import require_numerics
from .recompute import Options, post_keeping_no_streams, pre_keeping_no_streams

Tensor = torch.Tensor


class _Gates(nn.Module):
    """Parameters of a projection of the streams, float32 as the ops take them."""

    def __init__(self, outputs: int, scales: int, hidden_size: int, streams: int, device: Any) -> None:
        super().__init__()
        self.hidden_size, self.streams = hidden_size, streams
        self.fn = nn.Parameter(torch.empty(outputs, streams * hidden_size, dtype=torch.float32, device=device))
        self.scale = nn.Parameter(torch.empty(scales, dtype=torch.float32, device=device))
        self.base = nn.Parameter(torch.empty(outputs, dtype=torch.float32, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights of standard deviation 0.02 behind gates that are almost closed (0.01), no bias."""
        nn.init.normal_(self.fn, std=0.02)
        nn.init.constant_(self.scale, 0.01)
        nn.init.zeros_(self.base)

    def extra_repr(self) -> str:
        return f"hidden_size={self.hidden_size}, streams={self.streams}"


class HyperConnection(_Gates):
    """n residual streams around a block: collapse, block, spread and mix (:func:`kernelforge.mhc_pre`, ``mhc_post``).

    ``module(x, block, ...)`` replaces ``x + block(x, ...)``. The parameters ``fn``, ``scale`` and ``base`` have the
    names and shapes of transformers' ``DeepseekV4HyperConnection``, so its weights load.

    Args:
        hidden_size: C, a multiple of 32.
        streams: n, 2 to 8.
        iters, eps, norm_eps: as in :func:`kernelforge.mhc_pre`.
        recompute: do not keep the streams that come in for the backward pass, but make them again there from what the
            module before has kept: one ``mhc_post`` each, no block runs twice. Streams whose module before is not a
            ``HyperConnection`` are kept; so are those of a module with ``recompute=False``, from which a run of others
            starts. Saves n * C values a token and module; see ``docs/ops/mhc.md`` for what it costs.
        accumulate_in_order: add parameters' gradients to ``.grad`` inside the backward pass, token chunk by token chunk
            in the order of the sequences. Gradients accumulated over several backward passes then are those of one
            pass over all sequences, to the bit. Hooks on the parameters' gradients do not run.
        numerics, backend: as in :func:`kernelforge.mhc_pre`.
        device: of the parameters.

    Raises:
        ValueError: ``streams`` or ``hidden_size`` is out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        streams: int = 4,
        *,
        iters: int = 20,
        eps: float = 1e-6,
        norm_eps: float = 1e-6,
        recompute: bool = False,
        accumulate_in_order: bool = False,
        numerics: str = "exact",
        backend: str | None = None,
        device: Any = None,
    ) -> None:
        _require(hidden_size, streams, numerics)
        super().__init__(streams * (streams + 2), 3, hidden_size, streams, device)
        self.iters, self.eps, self.norm_eps = iters, eps, norm_eps
        self.recompute, self.accumulate_in_order = recompute, accumulate_in_order
        self.numerics, self.backend = numerics, backend

    def pre(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Streams [..., S, n, C] to the block's input [..., S, C], post [..., S, n] and comb [..., S, n, n]."""
        weights = (self.fn, self.scale, self.base)
        if self.recompute or self.accumulate_in_order:
            return pre_keeping_no_streams(x, *weights, self._options())
        given: dict[str, Any] = dict(iters=self.iters, eps=self.eps, norm_eps=self.norm_eps)
        return mhc_pre(x, *weights, **given, numerics=self.numerics, backend=self.backend)

    def post(self, y: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        """The block's output y [..., S, C] spread over the streams, and those mixed."""
        if self.recompute or self.accumulate_in_order:
            return post_keeping_no_streams(y, x, post, comb, self._options())
        return mhc_post(y, x, post, comb, numerics=self.numerics, backend=self.backend)

    def forward(self, x: Tensor, block: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Streams after ``block(collapsed, *args, **kwargs)``, which returns a tensor like its first argument."""
        collapsed, post, comb = self.pre(x)
        return self.post(block(collapsed, *args, **kwargs), x, post, comb)

    def expand(self, hidden: Tensor) -> Tensor:
        """Streams [..., S, n, C] that start as n copies of an embedding [..., S, C]."""
        return hidden.unsqueeze(-2).expand(*hidden.shape[:-1], self.streams, hidden.shape[-1]).contiguous()

    def _options(self) -> Options:
        return Options(self.iters, self.eps, self.norm_eps, self.backend, self.recompute, self.accumulate_in_order)


class HyperHead(_Gates):
    """The final collapse of the streams (:func:`kernelforge.mhc_head`).

    Args:
        hidden_size, streams, eps, norm_eps, accumulate_in_order, numerics, backend, device: as in
            :class:`HyperConnection`.

    Raises:
        ValueError: ``streams`` or ``hidden_size`` is out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        streams: int = 4,
        *,
        eps: float = 1e-6,
        norm_eps: float = 1e-6,
        accumulate_in_order: bool = False,
        numerics: str = "exact",
        backend: str | None = None,
        device: Any = None,
    ) -> None:
        _require(hidden_size, streams, numerics)
        super().__init__(streams, 1, hidden_size, streams, device)
        self.eps, self.norm_eps, self.accumulate_in_order = eps, norm_eps, accumulate_in_order
        self.numerics, self.backend = numerics, backend

    def forward(self, x: Tensor) -> Tensor:
        """Streams [..., S, n, C] to [..., S, C]."""
        if self.accumulate_in_order:
            options = Options(1, self.eps, self.norm_eps, self.backend, False, True, head=True)
            return pre_keeping_no_streams(x, self.fn, self.scale, self.base, options)[0]
        given: dict[str, Any] = dict(eps=self.eps, norm_eps=self.norm_eps)
        return mhc_head(x, self.fn, self.scale, self.base, **given, numerics=self.numerics, backend=self.backend)


def _require(hidden_size: int, streams: int, numerics: str) -> None:
    require_numerics("HyperConnection", numerics)
    if not 2 <= streams <= 8:
        raise ValueError(f"streams: given {streams}, wanted 2 to 8")
    if hidden_size <= 0 or hidden_size % 32:
        raise ValueError(f"hidden_size: given {hidden_size}, wanted a positive multiple of 32")
