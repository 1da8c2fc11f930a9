"""Tensor parallelism that gives the same bits for any number of ranks: N is split, never K."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ..ops.mx_quantize.op import dequantize_mxfp4, mxfp8_values, quantize_mxfp4, quantize_mxfp8
from ..ops.mxfp4_gemm.op import mxfp4_gemm
from ..ops.sliced_gemm.op import product, product_over_rows

BLOCK = 32


class WireBytes(NamedTuple):
    """Bytes that a rank sends in a forward pass.

    Attributes:
        gathered: quantized inputs, as :class:`TPMXFP4Linear` sends them.
        reduced: what a layer split along K sends for its bfloat16 outputs: a ring's all-reduce.
    """

    gathered: int
    reduced: int


class TPMXFP4Linear(torch.nn.Module):
    """y = x W^T with MXFP4 weights and MXFP8 activations over the ranks of a group.

    Rank r of R holds rows ``[r * N/R, (r + 1) * N/R)`` of W and gives those columns of y. Its input is its own columns
    of x, as a layer before it gives them; they are quantized, then gathered: 33/32 bytes an element. No sum is ever
    split over ranks, so y, the input's gradient and the weight's have the bits of one rank, for any R.

    The gradient passes the quantizations straight through. Its products are contract C4 in chunks of 128.

    Args:
        in_features: K, a multiple of 32 * R.
        out_features: N, a multiple of R.
        group: the ranks; None for one process.
        backend: as in :func:`kernelforge.mxfp4_gemm`.
        device: of the weight.

    Attributes:
        weight: float32 master weights of this rank, [N/R, K].

    Raises:
        ValueError: a size does not divide.
    """

    weight: torch.nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: dist.ProcessGroup | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        ranks = 1 if group is None else group.size()
        if in_features < 1 or in_features % (BLOCK * ranks):
            raise ValueError(f"in_features: given {in_features}, wanted a multiple of {BLOCK} * {ranks} ranks")
        if out_features < 1 or out_features % ranks:
            raise ValueError(f"out_features: given {out_features}, wanted a multiple of {ranks} ranks")
        self.in_features, self.out_features, self.group, self.backend = in_features, out_features, group, backend
        self.ranks = ranks
        shape = (out_features // ranks, in_features)
        self.weight = torch.nn.Parameter(torch.empty(shape, dtype=torch.float32, device=device))
        torch.nn.init.normal_(self.weight, std=in_features**-0.5)

    def load_full(self, weight: torch.Tensor) -> None:
        """Take this rank's rows of the whole weight [N, K]."""
        rank = 0 if self.group is None else self.group.rank()
        rows = self.weight.shape[0]
        with torch.no_grad():
            self.weight.copy_(weight[rank * rows : (rank + 1) * rows])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``bfloat16`` [..., N/R] of this rank's columns of the input, ``bfloat16`` [..., K/R]; all ranks must call."""
        wanted = self.in_features // self.ranks
        if x.dtype != torch.bfloat16:
            raise TypeError(f"x: given {x.dtype}, wanted bfloat16")
        if x.shape[-1] != wanted:
            raise ValueError(f"x: given {list(x.shape)}, wanted [..., K/R] with K/R = {wanted}")
        out: torch.Tensor = _Linear.apply(x.reshape(-1, wanted), self.weight, self.group, self.backend)
        return out.view(*x.shape[:-1], -1)

    def wire_bytes(self, tokens: int) -> WireBytes:
        """Bytes that a rank sends for ``tokens`` rows, beside what a layer split along K would send."""
        others = self.ranks - 1
        own = tokens * self.in_features // self.ranks
        # A ring sends every element twice, but for each rank's own share.
        return WireBytes(others * (own + own // BLOCK), 2 * 2 * tokens * self.out_features * others // self.ranks)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, ranks={self.ranks}"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, group: Any, backend: str | None) -> torch.Tensor:
        codes, scale = quantize_mxfp8(x.contiguous(), backend=backend)
        codes = gather_columns(codes.view(torch.uint8), group).view(torch.float8_e4m3fn)
        scale = gather_columns(scale, group)
        w, w_scale = quantize_mxfp4(weight, backend=backend)
        ctx.save_for_backward(codes, scale, w, w_scale)
        ctx.group, ctx.backend = group, backend
        return mxfp4_gemm(codes, scale, w, w_scale, backend=backend)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        codes, scale, w, w_scale = ctx.saved_tensors
        grad = grad.to(torch.bfloat16)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            columns = swap_columns(w, ctx.group), swap_columns(w_scale, ctx.group)
            values = dequantize_mxfp4(*columns, dtype=torch.bfloat16, backend=ctx.backend)
            everyone = gather_columns(grad, ctx.group).contiguous()
            dx = product(everyone, values, torch.bfloat16, turned=True, backend=ctx.backend)
        if ctx.needs_input_grad[1]:
            dw = product_over_rows(grad.contiguous(), mxfp8_values(codes, scale), backend=ctx.backend)
        return dx, dw, None, None


def gather_columns(own: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """All ranks' columns side by side: [M, C] of each to [M, R * C]."""
    if group is None or group.size() == 1:
        return own
    own = own.contiguous()
    everyone = [torch.empty_like(own) for _ in range(group.size())]
    dist.all_gather(everyone, own, group=group)
    return torch.cat(everyone, 1)


def swap_columns(own: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """From rows to columns: [N/R, C] of each rank to this rank's [N, C/R]."""
    if group is None or group.size() == 1:
        return own
    ranks = group.size()
    outgoing = own.view(own.shape[0], ranks, -1).transpose(0, 1).contiguous()
    incoming = torch.empty_like(outgoing)
    dist.all_to_all_single(incoming, outgoing, group=group)
    return incoming.flatten(0, 1)
