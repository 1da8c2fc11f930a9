"""The grouped output projection: public function, checks, torch registration, autograd."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..mxfp4_gemm.op import grouped_mxfp4_gemm, mxfp4_gemm
from ..sliced_gemm.op import product, product_over_rows
from ..support import LIBRARY, Meta, define, expect, meta, require_numerics, require_tensor

Tensor = torch.Tensor
BF16 = (torch.bfloat16,)


def grouped_output_projection(
    o: Tensor,
    wa: Tensor,
    wb: Tensor,
    wa_scale: Tensor | None = None,
    wb_scale: Tensor | None = None,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> Tensor:
    """Project attention outputs: heads in g groups, each group to ``rank`` channels, all of them to the hidden size.

    (DeepSeek-V4, grouped output projection.) Products of BF16 weights follow contract C4, of MXFP4 weights C3; what
    lies between the two is rounded to bfloat16. Differentiable in ``o`` and in BF16 weights.

    Args:
        o: bfloat16 [..., H, D], contiguous; group i has heads i * H / g to (i + 1) * H / g.
        wa: bfloat16 [g, rank, K] with K = H / g * D, or packed MXFP4, uint8 [g, rank, K / 2].
        wb: bfloat16 [hidden, g * rank], or packed MXFP4, uint8 [hidden, g * rank / 2].
        wa_scale, wb_scale: E8M0 bytes, uint8 [g, rank, K / 32] and [hidden, g * rank / 32], of MXFP4 weights.
        numerics: ``"exact"``, the contract of ``docs/numerics.md``.
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        bfloat16 [..., hidden].

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    require_numerics("grouped_output_projection", numerics)
    for name, tensor in (("o", o), ("wa", wa), ("wb", wb)):
        require_tensor(name, tensor)
    _check(meta(o), meta(wa), meta(wb), meta(wa_scale), meta(wb_scale))
    groups, rank, _ = wa.shape
    hidden = wb.shape[0]
    a = o.reshape(-1, o.shape[-2] * o.shape[-1])
    M, K = len(a), a.shape[1] // groups
    if wa_scale is None:
        middle: Tensor = _gemm(a, wa.view(groups * rank, K), groups, backend)
    else:
        # Groups take the part of experts: the rows of one after those of the other.
        rows = a.view(M, groups, K).transpose(0, 1).contiguous().view(groups * M, K)
        offsets = torch.arange(groups + 1, dtype=torch.int32, device=o.device) * M
        found = grouped_mxfp4_gemm(rows, None, wa, wa_scale, offsets, backend=backend)
        middle = found.view(groups, M, rank).transpose(0, 1).contiguous().view(M, groups * rank)
    if wb_scale is None:
        out: Tensor = _gemm(middle, wb, 1, backend)
    else:
        out = mxfp4_gemm(middle, None, wb, wb_scale, backend=backend)
    return out.view(*o.shape[:-2], hidden)


@functools.lru_cache(maxsize=4096)
def _check(o: Meta, wa: Meta, wb: Meta, wa_scale: Meta | None, wb_scale: Meta | None) -> None:
    if len(o.shape) < 2 or len(wa.shape) != 3 or not wa.shape[0]:
        raise ValueError(f"o, wa: given {o} and {wa}, wanted bfloat16[..., H, D] and [g, rank, H / g * D]")
    expect("o", o, BF16, o.shape, o.device)
    groups, rank, _ = wa.shape
    H, D = o.shape[-2:]
    if H % groups or not H or not D:
        raise ValueError(f"wa: given {wa}: {H} heads do not make {groups} groups of the same size")
    K = H // groups * D
    _check_weight("wa", wa, wa_scale, (groups, rank), K, o.device)
    _check_weight("wb", wb, wb_scale, ("hidden",), groups * rank, o.device)


def _check_weight(
    name: str, w: Meta, scale: Meta | None, rows: tuple[int | str, ...], K: int, device: torch.device
) -> None:
    if w.dtype == torch.bfloat16:
        expect(name, w, BF16, (*rows, K), device)
        if scale is not None:
            raise ValueError(f"{name}_scale: given {scale}, but {name} is bfloat16, which has none")
        return
    if K % 32:
        raise ValueError(f"{name}: given {w}: MXFP4 needs a contraction of a multiple of 32, this one has {K}")
    expect(name, w, (torch.bfloat16, torch.uint8), (*rows, K // 2), device)
    expect(f"{name}_scale", scale, (torch.uint8,), (*w.shape[:-1], K // 32), device)


def _gemm_impl(a: Tensor, w: Tensor, groups: int, backend: str | None) -> Tensor:
    expect("a", meta(a), BF16, ("M", groups * w.shape[1]), a.device)
    expect("w", meta(w), BF16, w.shape, a.device)
    return product(a, w, torch.bfloat16, groups=groups, whole=True, backend=backend)


def _gemm_fake(a: Tensor, w: Tensor, groups: int, backend: str | None) -> Tensor:
    return a.new_empty((a.shape[0], w.shape[0]))


def _backward_impl(grad: Tensor, a: Tensor, w: Tensor, groups: int, backend: str | None) -> tuple[Tensor, Tensor]:
    expect("grad", meta(grad), BF16, (a.shape[0], w.shape[0]), a.device)
    a_grad = product(grad, w, torch.bfloat16, groups=groups, turned=True, whole=True, backend=backend)
    return a_grad, product_over_rows(grad, a, torch.bfloat16, groups=groups, backend=backend)


def _backward_fake(grad: Tensor, a: Tensor, w: Tensor, groups: int, backend: str | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(w)


_gemm = define("sliced_gemm(Tensor a, Tensor w, int groups, str? backend) -> Tensor", _gemm_impl, _gemm_fake)
_gemm_backward = define(
    "sliced_gemm_backward(Tensor grad, Tensor a, Tensor w, int groups, str? backend) -> (Tensor, Tensor)",
    _backward_impl,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, w, ctx.groups, ctx.backend = inputs
    ctx.save_for_backward(a, w)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gemm_backward(grad.contiguous(), *ctx.saved_tensors, ctx.groups, ctx.backend), None, None)


torch.library.register_autograd("kernelforge::sliced_gemm", _gradient, setup_context=_save, lib=LIBRARY)
