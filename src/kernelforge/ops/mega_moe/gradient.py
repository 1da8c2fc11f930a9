"""Gradients of a mixture-of-experts layer, quantizations passed straight through."""

from __future__ import annotations

import functools

import torch

from ...backends import Executable
from ...formats import e8m0
from ..mx_quantize.op import dequantize_mxfp4
from ..mxfp4_gemm.op import grouped_mxfp4_gemm
from ..support import Meta, choose_device, define, expect, meta
from . import local
from .dispatch import Dispatched, Operands, check, dispatch

_PRODUCT = f"{local.KERNELS}.backward:moe_input_product"
_WEIGHT_PRODUCT = f"{local.KERNELS}.backward:moe_weight_product"
_ACTIVATION = f"{local.KERNELS}.backward:moe_activation_backward"


@functools.lru_cache(maxsize=1024)
def _product_kernel(left: Meta, right: Meta, transposed: bool, backend: str | None) -> Executable:
    device = choose_device(backend, left.device)
    extents = {"M": left.shape[1], "N": right.shape[1]} if transposed else {"N": right.shape[1], "K": left.shape[1]}
    builder = _WEIGHT_PRODUCT if transposed else _PRODUCT
    return local.tuned(builder, device, "product", left.shape[0], 0, **extents)


def _product(left: torch.Tensor, right: torch.Tensor, backend: str | None, transposed: bool = False) -> torch.Tensor:
    """float32 ``left @ right``, or ``left.T @ right``, of bfloat16 matrices by contract C4 in chunks of 128."""
    rows = left.shape[1 if transposed else 0]
    out = left.new_zeros((rows, right.shape[1]), dtype=torch.float32)
    if left.shape[0]:
        _product_kernel(meta(left), meta(right), transposed, backend)(left, right, out)
    return out


def _activation_backward(
    gate_up: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor, limit: float, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate and up, bfloat16 [m, 2 * inter], and of the rows' weights, float32 [m]."""
    grad_gate_up = gate_up.new_empty(gate_up.shape, dtype=torch.bfloat16)
    grad_weight = torch.empty_like(weight)
    device = choose_device(backend, grad.device)
    run = local.tuned(_ACTIVATION, device, "activation_backward", 0, 0, inter=grad.shape[1], limit=limit)
    run(gate_up, grad, weight, grad_gate_up, grad_weight)
    return grad_gate_up, grad_weight


def _values(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """bfloat16 values of MXFP8 rows, scales read by C1; exact, a power of two times four bits."""
    byte = scale.int()
    factor = (byte << 23).view(torch.float32)
    factor = torch.where(byte < e8m0.BIAS + e8m0.LOWEST_READ, 0.0, factor)
    factor = torch.where(byte > e8m0.BIAS + e8m0.HIGHEST_READ, torch.nan, factor)
    blocks = codes.view(torch.float8_e4m3fn).float().unflatten(-1, (scale.shape[-1], local.BLOCK))
    return (blocks * factor[..., None]).flatten(-2).bfloat16()


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
    inputs = operands, limit, weights, backend
    _, grad_weight, grad_w1, grad_w2 = _fake(grad, *operands, limit, weights, backend)
    for tensor in (grad_weight, grad_w1, grad_w2):
        tensor.zero_()
    rows = dispatch(x, topk_idx, topk_weight, w1.shape[0], backend)
    used = int(rows.plan.offsets[-1])
    grad_rows = x.new_zeros((len(rows.token), x.shape[1]), dtype=torch.float32)
    if used:
        _of_rows(rows, grad[rows.token], inputs, grad_rows, grad_weight, grad_w1, grad_w2)
    return local.combine(grad_rows, rows.plan.inverse, backend), grad_weight, grad_w1, grad_w2


def _of_rows(
    rows: Dispatched,
    grad: torch.Tensor,
    inputs: tuple[Operands, float, bool, str | None],
    grad_rows: torch.Tensor,
    grad_weight: torch.Tensor,
    grad_w1: torch.Tensor,
    grad_w2: torch.Tensor,
) -> None:
    """Gradients expert by expert: only one expert's weights exist as bfloat16 at a time."""
    (*_, w1, w1_scale, w2, w2_scale), limit, weights, backend = inputs
    offsets = rows.plan.offsets.tolist()
    used = offsets[-1]
    given = rows.x[:used], rows.x_scale[:used]
    gate_up = grouped_mxfp4_gemm(*given, w1, w1_scale, rows.plan.offsets, torch.float32, backend=backend)
    if weights:
        x = _values(*given)
        h, h_scale = local.activation(
            *given, rows.plan.offsets, rows.weight[:used], w1, w1_scale, w2, w2_scale, limit=limit, backend=backend
        )
        h = _values(h, h_scale)
    pairs = grad_weight.view(-1)
    for expert in range(len(offsets) - 1):
        part = slice(offsets[expert], offsets[expert + 1])
        if part.start == part.stop:
            continue
        wide = dequantize_mxfp4(w2[expert], w2_scale[expert], torch.bfloat16, backend=backend)
        grad_h = _product(grad[part], wide, backend)
        grad_gate_up, grad_of_weight = _activation_backward(gate_up[part], grad_h, rows.weight[part], limit, backend)
        wide = dequantize_mxfp4(w1[expert], w1_scale[expert], torch.bfloat16, backend=backend)
        grad_rows[part] = _product(grad_gate_up, wide, backend)
        pairs[rows.plan.order[part].long()] = grad_of_weight
        if weights:
            grad_w1[expert] = _product(grad_gate_up, x[part], backend, transposed=True)
            grad_w2[expert] = _product(grad[part], h[part], backend, transposed=True)


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
