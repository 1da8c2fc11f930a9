"""Mixture of experts: the reference, which defines the bits.

Arrays are NumPy; bfloat16 travels as uint16 bits, E4M3 and E8M0 as uint8.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16, mx
from ...numerics.elementary import sigmoid, silu
from ...numerics.row_sum import row_sum
from ..mxfp4_gemm.reference import grouped_mxfp4_gemm
from ..sliced_gemm.reference import product

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Indices = NDArray[np.int32]


class Plan(NamedTuple):
    """Where every (token, slot) pair goes.

    Attributes:
        order: int32 [T * k]: pair ``token * k + slot`` of each row, rows sorted by expert, pairs of an expert in their
            own order; -1 in the rows beyond ``offsets[-1]``.
        offsets: int32 [E + 1]: expert e has rows ``[offsets[e], offsets[e + 1])``.
        inverse: int32 [T, k]: row of each pair, -1 where it is dropped.
    """

    order: Indices
    offsets: Indices
    inverse: Indices


def dispatch_plan(topk_idx: Indices, experts: int) -> Plan:
    """The stable sort by expert of the pairs of ``topk_idx`` (int32 [T, k], -1 for a dropped slot)."""
    flat = topk_idx.reshape(-1)
    order = np.full(flat.size, -1, np.int32)
    inverse = np.full(flat.size, -1, np.int32)
    offsets = np.zeros(experts + 1, np.int32)
    row = 0
    for expert in range(experts):
        for pair in np.flatnonzero(flat == expert):
            order[row], inverse[pair] = pair, row
            row += 1
        offsets[expert + 1] = row
    return Plan(order, offsets, inverse.reshape(topk_idx.shape))


def swiglu(gate: Float32, up: Float32, weight: Float32, limit: float) -> Float32:
    """silu(gate clamped above at ``limit``) * (up clamped to +-limit), times the row's weight.

    A NaN passes the clamps. Each factor and each product is read by C1 (below 2^-50: +0) before it is used.
    """
    top = np.float32(limit)
    with np.errstate(all="ignore"):
        g = np.where(gate > top, top, gate)
        u = np.where(up > top, top, up)
        u = np.where(u < -top, -top, u)
        product = mx.flush(mx.flush(silu(g)) * mx.flush(u))
        result: Float32 = mx.flush(product * mx.flush(weight)[:, None])
    return result


def expert_ffn(
    x: Bytes,
    x_scale: Bytes,
    offsets: Indices,
    weight: Float32,
    w1: Bytes,
    w1_scale: Bytes,
    w2: Bytes,
    w2_scale: Bytes,
    swiglu_limit: float,
) -> Float32:
    """float32 [n, hidden]: linear1, clamped SwiGLU times the row's weight, MXFP8, linear2; +0 beyond ``offsets[-1]``.

    Args:
        x, x_scale: MXFP8 rows sorted by expert, E4M3 codes [n, hidden] and scale bytes [n, hidden/32].
        offsets: int32 [E + 1].
        weight: float32 [n].
        w1, w1_scale: packed E2M1 [E, 2 * inter, hidden/2], gate rows, then up rows; bytes [E, 2 * inter, hidden/32].
        w2, w2_scale: [E, hidden, inter/2] and [E, hidden, inter/32].
    """
    used = int(offsets[-1])
    inter = w1.shape[1] // 2
    both = grouped_mxfp4_gemm(x[:used], x_scale[:used], w1, w1_scale, offsets, "e4m3_e8m0", "float32")
    h, h_scale = mx.quantize_mxfp8(swiglu(both[:, :inter], both[:, inter:], weight[:used], swiglu_limit))
    y = np.zeros((x.shape[0], w2.shape[1]), np.float32)
    y[:used] = grouped_mxfp4_gemm(h, h_scale, w2, w2_scale, offsets, "e4m3_e8m0", "float32")
    return y


def combine(y: Float32, inverse: Indices) -> NDArray[np.uint16]:
    """bfloat16 bits [T, hidden]: y's rows of a token added in slot order from +0, each read by C1; -1 adds nothing."""
    total = np.zeros((inverse.shape[0], y.shape[1]), np.float32)
    with np.errstate(all="ignore"):
        for slot in range(inverse.shape[1]):
            taken = inverse[:, slot] >= 0
            total[taken] = total[taken] + mx.flush(y[inverse[taken, slot]])
    return bf16.encode(bf16.canonical(total))


def mega_moe(
    x: NDArray[np.uint16],
    topk_idx: Indices,
    topk_weight: Float32,
    experts: tuple[Bytes, Bytes, Bytes, Bytes],
    swiglu_limit: float,
) -> NDArray[np.uint16]:
    """bfloat16 bits [T, hidden] of a mixture-of-experts layer on bfloat16 bits ``x`` [T, hidden].

    Args:
        topk_idx, topk_weight: [T, k].
        experts: w1, w1_scale, w2, w2_scale as in :func:`expert_ffn`.
    """
    plan = dispatch_plan(topk_idx, experts[0].shape[0])
    codes, scale = mx.quantize_mxfp8(bf16.decode(x))
    pairs = plan.order[: plan.offsets[-1]]
    token = pairs // max(topk_idx.shape[1], 1)
    weight = topk_weight.reshape(-1)[pairs]
    y = expert_ffn(codes[token], scale[token], plan.offsets, weight, *experts, swiglu_limit)
    return combine(y, plan.inverse)


class ActivationGradient(NamedTuple):
    """Gradients of gate and up, bfloat16 values, and of the rows' weights."""

    gate: Float32
    up: Float32
    weight: Float32


def activation_backward(gate: Float32, up: Float32, grad: Float32, weight: Float32, limit: float) -> ActivationGradient:
    """From the gradient of the activation, float32 [n, inter]; every factor is read by C1.

    With s = sigmoid(g), the slope of silu is s + (g * s) * (1 - s). Nothing passes a clamp that holds.
    """
    top = np.float32(limit)
    with np.errstate(all="ignore"):
        g = mx.flush(np.where(gate > top, top, gate))
        u = np.where(up > top, top, up)
        u = mx.flush(np.where(u < -top, -top, u))
        s = mx.flush(sigmoid(g))
        slope = mx.flush(s + mx.flush(g * s) * (np.float32(1) - s))
        value = mx.flush(silu(g))
        down = mx.flush(grad)
        of_weight = row_sum(down * mx.flush(value * u))
        down = mx.flush(down * mx.flush(weight)[:, None])
        of_gate = np.where(gate > top, np.float32(0), mx.flush(down * u) * slope)
        of_up = np.where((up > top) | (up < -top), np.float32(0), down * value)
    rounded = [bf16.decode(bf16.encode(bf16.canonical(x))) for x in (of_gate, of_up)]
    return ActivationGradient(rounded[0], rounded[1], of_weight)


class Gradient(NamedTuple):
    """Gradients of x (bfloat16 bits), the weights of the slots, w1 and w2 (float32, of the values they stand for)."""

    x: NDArray[np.uint16]
    topk_weight: Float32
    w1: Float32
    w2: Float32


def mega_moe_backward(
    grad: NDArray[np.uint16],
    x: NDArray[np.uint16],
    topk_idx: Indices,
    topk_weight: Float32,
    experts: tuple[Bytes, Bytes, Bytes, Bytes],
    swiglu_limit: float,
) -> Gradient:
    """Gradients of :func:`mega_moe`, quantizations passed straight through; rows of an expert in the plan's order."""
    w1, w1_scale, w2, w2_scale = experts
    inter = w2.shape[2] * 2
    plan = dispatch_plan(topk_idx, w1.shape[0])
    codes, scale = mx.quantize_mxfp8(bf16.decode(x))
    rows = np.zeros((plan.order.size, x.shape[1]), np.float32)
    of_weight = np.zeros(topk_idx.size, np.float32)
    of_w1 = np.zeros((w1.shape[0], 2 * inter, x.shape[1]), np.float32)
    of_w2 = np.zeros((w1.shape[0], x.shape[1], inter), np.float32)
    for e in range(w1.shape[0]):
        pairs = plan.order[plan.offsets[e] : plan.offsets[e + 1]]
        if not pairs.size:
            continue
        token, weight = pairs // topk_idx.shape[1], topk_weight.reshape(-1)[pairs]
        alone = np.array([0, pairs.size], np.int32)
        given = codes[token], scale[token]
        both = grouped_mxfp4_gemm(*given, w1[e : e + 1], w1_scale[e : e + 1], alone, "e4m3_e8m0", "float32")
        gate, up = both[:, :inter], both[:, inter:]
        h = mx.dequantize_mxfp8(*mx.quantize_mxfp8(swiglu(gate, up, weight, swiglu_limit)))
        out = bf16.decode(grad[token])
        wide1, wide2 = (mx.dequantize_mxfp4(w1[e], w1_scale[e]), mx.dequantize_mxfp4(w2[e], w2_scale[e]))
        inner = activation_backward(gate, up, product(out, wide2.T), weight, swiglu_limit)
        both = np.concatenate([inner.gate, inner.up], -1)
        rows[plan.offsets[e] : plan.offsets[e + 1]] = product(both, wide1.T)
        of_weight[pairs] = inner.weight
        of_w1[e] = product(both.T, mx.dequantize_mxfp8(*given).T)
        of_w2[e] = product(out.T, h.T)
    return Gradient(combine(rows, plan.inverse), of_weight.reshape(topk_idx.shape), of_w1, of_w2)
