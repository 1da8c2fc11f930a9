"""A mixture-of-experts layer: router, experts, shared expert."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from ..ops.mega_moe.local import combine
from ..ops.route_topk.op import route_topk
from ..ops.sliced_gemm.op import linear
from .experts import MXFP4Experts

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MoE(torch.nn.Module):
    """Router, MXFP4 experts and, if asked for, a shared expert that every token goes through.

    Logits are products of contract C4 with float32 router weights; :func:`kernelforge.route_topk` chooses and weighs,
    :func:`kernelforge.mega_moe` computes. The shared expert's result is added to the others' in float32 and rounded
    once; so are the three gradients of a token (router, experts, shared expert, in this order).

    Over a group, experts are shared among the ranks as :class:`MXFP4Experts` says. Router and shared expert are whole
    on every rank, and their gradients are those of the rank's own tokens: add them over ranks as those of any
    replicated layer.

    Args:
        hidden, inter: extents of the experts, multiples of 32.
        experts: in all; a multiple of the number of ranks.
        k: experts per token.
        shared_inter: ``inter`` of the shared expert, a multiple of 32; 0 for none.
        score, renormalize, scale: of the router, as in :func:`kernelforge.route_topk`.
        swiglu_limit: of the clamped SwiGLU; None for no clamp.
        hash_table: int32 or int64 [vocabulary, k], the experts of each token id, for hash routing; None to choose by
            the logits and ``bias``.
        trainable: keep float32 master weights of the experts.
        group: ranks that share the experts; None for one process.
        waves, backend: as in :func:`kernelforge.mega_moe`.

    Attributes:
        router: float32 parameter [experts, hidden].
        bias: float32 buffer [experts], added to the scores for the choice alone; it has no gradient.
        experts, shared: :class:`MXFP4Experts`; ``shared`` is None without a shared expert.

    Raises:
        ValueError: ``experts`` does not divide, or ``hash_table`` does not fit ``k``.
    """

    bias: torch.Tensor
    hash_table: torch.Tensor | None

    def __init__(
        self,
        hidden: int,
        inter: int,
        experts: int,
        k: int,
        *,
        shared_inter: int = 0,
        score: str = "sqrtsoftplus",
        renormalize: bool = True,
        scale: float = 1.0,
        swiglu_limit: float | None = 10.0,
        hash_table: torch.Tensor | None = None,
        trainable: bool = False,
        group: ProcessGroup | None = None,
        waves: int | str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if hash_table is not None and (hash_table.dim() != 2 or hash_table.shape[1] != k):
            raise ValueError(f"hash_table: given {list(hash_table.shape)}, wanted [vocabulary, k] with k = {k}")
        self.k, self.score, self.renormalize, self.scale, self.backend = k, score, renormalize, scale, backend
        self.router = torch.nn.Parameter(torch.randn(experts, hidden) * hidden**-0.5)
        self.register_buffer("bias", torch.zeros(experts))
        self.register_buffer("hash_table", hash_table)
        given: dict[str, Any] = {"trainable": trainable, "backend": backend}
        self.experts = MXFP4Experts(experts, hidden, inter, swiglu_limit, group=group, waves=waves, **given)
        self.shared = MXFP4Experts(1, hidden, shared_inter, swiglu_limit, **given) if shared_inter else None

    def route(self, x: torch.Tensor, token_ids: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts int32 [T, k] and weights float32 [T, k] of tokens ``bfloat16`` [T, hidden]."""
        if self.hash_table is not None and token_ids is None:
            raise ValueError("token_ids: missing; with a hash_table they are what experts are looked up by")
        return route_topk(
            linear(x, self.router, self.backend),
            self.bias,
            self.k,
            score=self.score,
            renormalize=self.renormalize,
            scale=self.scale,
            hash_table=self.hash_table,
            token_ids=token_ids,
            backend=self.backend,
        )

    def forward(self, x: torch.Tensor, token_ids: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's output, like x.

        Args:
            x: ``bfloat16`` [..., hidden].
            token_ids: integers [...], for hash routing.
        """
        tokens = x.reshape(-1, x.shape[-1])
        ways = _Fan.apply(tokens, 2 if self.shared is None else 3, self.backend)
        out = self.experts(ways[1], *self.route(ways[0], token_ids))
        if self.shared is not None:
            expert = torch.zeros((len(tokens), 1), dtype=torch.int32, device=x.device)
            out = _Sum.apply(
                out, self.shared(ways[2], expert, torch.ones_like(expert, dtype=torch.float32)), self.backend
            )
        return out.view(x.shape)


def _added(parts: tuple[torch.Tensor, ...], backend: str | None) -> torch.Tensor:
    """``bfloat16`` tensors [T, hidden] added in float32 in their order from +0, each read by C1, rounded once."""
    tokens, hidden = parts[0].shape
    rows = torch.arange(len(parts) * tokens, dtype=torch.int32, device=parts[0].device)
    stacked = torch.cat(parts).float().view(-1, hidden)
    return combine(stacked, rows.view(len(parts), tokens).T.contiguous(), backend)


class _Sum(torch.autograd.Function):
    """Two results of a token become one."""

    @staticmethod
    def forward(ctx: Any, one: torch.Tensor, other: torch.Tensor, backend: str | None) -> torch.Tensor:
        return _added((one, other), backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return grads[0], grads[0], None


class _Fan(torch.autograd.Function):
    """One tensor for several users, whose gradients are added in their order."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, users: int, backend: str | None) -> tuple[torch.Tensor, ...]:
        ctx.backend = backend
        return tuple(x.view_as(x) for _ in range(users))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _added(grads, ctx.backend), None, None
