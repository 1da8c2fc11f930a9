"""The mixture of experts on one process: plan, expert feed-forward and combine, each with checks and registration.

:mod:`kernelforge.ops.mega_moe.op` composes them, and so does the expert-parallel engine, which moves rows between them.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch

from ...backends import Executable
from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, host_memory, schedule
from ..mxfp4_gemm.op import BUILDER as GEMM
from ..support import Meta, bytes_of, choose_device, define, expect, meta, require_tensor

BLOCK = 32
NEEDS = frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32})
KERNELS = "kernelforge.ops.mega_moe.kernels"


class Plan(NamedTuple):
    """Where every (token, slot) pair goes.

    Attributes:
        order: int32 [T * k]: pair ``token * k + slot`` of each row; rows are sorted by expert, pairs of one expert keep
            their order. Rows from ``offsets[E]`` on, where pairs are dropped, hold -1.
        offsets: int32 [E + 1]: expert e has rows ``[offsets[e], offsets[e + 1])``.
        inverse: int32 [T, k]: the row of each pair, -1 where it is dropped.
    """

    order: torch.Tensor
    offsets: torch.Tensor
    inverse: torch.Tensor


def dispatch_plan(topk_idx: torch.Tensor, experts: int, backend: str | None = None) -> Plan:
    """Sort the (token, slot) pairs by expert, stably.

    Args:
        topk_idx: int32 [T, k], -1 for a dropped slot.
        experts: number of experts, E.
        backend: None for the tensor's own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Raises:
        TypeError, ValueError: an argument is wrong; on the CPU that includes an expert outside [-1, E). On other
            devices such a slot is dropped.
        DeviceUnavailable: the device cannot run here.
    """
    require_tensor("topk_idx", topk_idx)
    return Plan(*_plan(topk_idx, experts, backend))


def expert_ffn(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    swiglu_limit: float | None = 10.0,
    backend: str | None = None,
) -> torch.Tensor:
    """Feed-forward of rows sorted by expert: W2[e] (silu(gate) * up * weight), gate and up from W1[e].

    The activation between the layers exists as MXFP8 alone.

    Args:
        x: ``float8_e4m3fn`` [n, hidden], MXFP8 rows.
        x_scale: E8M0 bytes [n, hidden/32].
        offsets: int32 [E + 1], ascending from 0 to at most n; expert e has rows ``[offsets[e], offsets[e + 1])``.
            Checked on the CPU.
        weight: float32 [n], of each row.
        w1: packed FP4 [E, 2 * inter, hidden/2]: an expert's ``inter`` gate rows, then its ``inter`` up rows.
        w1_scale: E8M0 bytes [E, 2 * inter, hidden/32].
        w2, w2_scale: [E, hidden, inter/2], [E, hidden, inter/32]. hidden and inter are multiples of 32.
        swiglu_limit: gate is clamped above at the limit, up to +-limit; None for no clamp.
        backend: as in :func:`dispatch_plan`.

    Returns:
        float32 [n, hidden]; rows from ``offsets[E]`` on are +0.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`dispatch_plan`.
    """
    given = {"x": x, "x_scale": x_scale, "offsets": offsets, "weight": weight}
    given |= {"w1": w1, "w1_scale": w1_scale, "w2": w2, "w2_scale": w2_scale}
    for name, value in given.items():
        require_tensor(name, value)
    limit = clamp_limit(swiglu_limit)
    packed = [bytes_of(tensor) for tensor in (w1, w1_scale, w2, w2_scale)]
    out: torch.Tensor = _ffn(x, bytes_of(x_scale), offsets, weight, *packed, limit, backend)
    return out


def combine(y: torch.Tensor, inverse: torch.Tensor, backend: str | None = None) -> torch.Tensor:
    """Add each token's rows in slot order.

    Args:
        y: float32 [n, hidden].
        inverse: int32 [T, k], the row of each slot, -1 to skip it. Checked on the CPU.
        backend: as in :func:`dispatch_plan`.

    Returns:
        ``bfloat16`` [T, hidden]: float32 sums from +0, one addition per slot, rounded once.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`dispatch_plan`.
    """
    require_tensor("y", y)
    require_tensor("inverse", inverse)
    out: torch.Tensor = _combine(y, inverse, backend)
    return out


def clamp_limit(swiglu_limit: float | None) -> float:
    """The limit as a number: infinite for none.

    Raises:
        ValueError: it is not positive.
    """
    limit = math.inf if swiglu_limit is None else float(swiglu_limit)
    if not limit > 0:
        raise ValueError(f"swiglu_limit: given {swiglu_limit}, wanted a positive number, or None for no clamp")
    return limit


def tuned(builder: str, device: str, kernel: str, rows: int, per_expert: int, **parameters: Any) -> Executable:
    """A kernel under the schedule of its name for that many rows, ``per_expert`` of them with each."""
    tiles = schedule("mega_moe", device, kernel=kernel, rows=rows, rows_per_expert=per_expert)
    return executable(KernelSpec.of(builder, NEEDS, **parameters, **tiles), device)


class _PlanKernels(NamedTuple):
    histogram: Executable
    place: Executable
    chunk: int


@functools.lru_cache(maxsize=1024)
def _plan_kernels(topk: Meta, experts: int, backend: str | None) -> _PlanKernels | None:
    expect("topk_idx", topk, (torch.int32,), ("T", "k"), topk.device)
    if experts < 1:
        raise ValueError(f"experts: given {experts}, wanted at least 1")
    device = choose_device(backend, topk.device)
    if topk.shape.numel() == 0:
        return None
    tiles = schedule("mega_moe", device, kernel="plan", rows=topk.shape.numel(), rows_per_expert=0)
    histogram, place = (
        executable(KernelSpec.of(f"{KERNELS}.plan:{name}", NEEDS, experts=experts, **tiles), device)
        for name in ("moe_count", "moe_place")
    )
    return _PlanKernels(histogram, place, tiles["chunk"])


def _plan_impl(
    topk_idx: torch.Tensor, experts: int, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    kernels = _plan_kernels(meta(topk_idx), experts, backend)
    order, offsets, inverse = _plan_fake(topk_idx, experts, backend)
    if kernels is None:
        return order, offsets.zero_(), inverse
    if topk_idx.device.type == "cpu":
        low, high = (int(bound) for bound in torch.aminmax(topk_idx))
        if low < -1 or high >= experts:
            wrong = low if low < -1 else high
            raise ValueError(f"topk_idx: given expert {wrong}, wanted -1 (dropped) to {experts - 1}")
    flat = topk_idx.view(-1)
    counts = flat.new_empty((-(-flat.shape[0] // kernels.chunk), experts))
    kernels.histogram(flat, counts)
    kernels.place(flat, counts, order, offsets, inverse.view(-1))
    return order, offsets, inverse


def _plan_fake(
    topk_idx: torch.Tensor, experts: int, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pairs = topk_idx.shape[0] * topk_idx.shape[1]
    return topk_idx.new_empty((pairs,)), topk_idx.new_empty((experts + 1,)), topk_idx.new_empty(topk_idx.shape)


class Shape(NamedTuple):
    """Extents of an expert layer."""

    experts: int
    inter: int
    hidden: int


def check_experts(w1: Meta | None, w1_scale: Meta | None, w2: Meta | None, w2_scale: Meta | None, x: Meta) -> Shape:
    """Check the weights of an expert layer for rows like ``x``.

    Raises:
        TypeError, ValueError: as in :func:`dispatch_plan`.
    """
    w1 = expect("w1", w1, (torch.uint8,), ("E", "2 * inter", "hidden/2"), x.device)
    experts, inter, hidden = w1.shape[0], w1.shape[1] // 2, 2 * w1.shape[2]
    if experts == 0 or hidden == 0 or hidden % BLOCK or w1.shape[1] == 0 or w1.shape[1] % (2 * BLOCK):
        raise ValueError(
            f"w1: given {w1}, so E = {experts}, 2 * inter = {w1.shape[1]}, hidden = {hidden}; "
            f"at least one expert, and inter and hidden positive multiples of {BLOCK}, are wanted"
        )
    expect("w1_scale", w1_scale, (torch.uint8,), (experts, 2 * inter, hidden // BLOCK), x.device)
    expect("w2", w2, (torch.uint8,), (experts, hidden, inter // 2), x.device)
    expect("w2_scale", w2_scale, (torch.uint8,), (experts, hidden, inter // BLOCK), x.device)
    return Shape(experts, inter, hidden)


class _FfnKernels(NamedTuple):
    linear1: Executable
    linear2: Executable
    shape: Shape


@functools.lru_cache(maxsize=1024)
def ffn_kernels(
    x: Meta,
    x_scale: Meta,
    offsets: Meta,
    weight: Meta,
    w1: Meta,
    w1_scale: Meta,
    w2: Meta,
    w2_scale: Meta,
    limit: float,
    backend: str | None,
    busy: int | None = None,
) -> _FfnKernels | None:
    """The two kernels of an expert layer, tuned for rows spread over ``busy`` experts (all of them by default)."""
    shape = check_experts(w1, w1_scale, w2, w2_scale, x)
    experts, inter, hidden = shape
    x = expect("x", x, (torch.float8_e4m3fn,), ("n", hidden), x.device)
    rows = x.shape[0]
    expect("x_scale", x_scale, (torch.uint8,), (rows, hidden // BLOCK), x.device)
    expect("offsets", offsets, (torch.int32,), (experts + 1,), x.device)
    expect("weight", weight, (torch.float32,), (rows,), x.device)
    device = choose_device(backend, x.device)
    if rows == 0:
        return None
    extents = {"inter": inter, "hidden": hidden, "experts": experts, "limit": limit}
    gemm = {"N": hidden, "K": inter, "experts": experts, "a_format": "e4m3_e8m0", "out_dtype": "float32"}
    per_expert = -(-rows // (busy or experts))
    linear1 = tuned(f"{KERNELS}.linear1:moe_linear1", device, "linear1", rows, per_expert, **extents)
    linear2 = tuned(GEMM, device, "linear2", rows, per_expert, **gemm)
    return _FfnKernels(linear1, linear2, shape)


def _ffn_impl(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    limit: float,
    backend: str | None,
) -> torch.Tensor:
    tensors = (x, x_scale, offsets, weight, w1, w1_scale, w2, w2_scale)
    kernels = ffn_kernels(*(meta(tensor) for tensor in tensors), limit, backend)
    y = host_memory.new_empty(x, (x.shape[0], w2.shape[1]), torch.float32)
    if kernels is None:
        return y
    if offsets.device.type == "cpu":
        y[_used_rows(offsets, x.shape[0]) :].zero_()
    else:
        y.zero_()
    h, h_scale = _first_layer(kernels, x, x_scale, offsets, weight, w1, w1_scale)
    kernels.linear2(h, h_scale, w2.flatten(0, 1), w2_scale.flatten(0, 1), offsets, y)
    return y


def _first_layer(
    kernels: _FfnKernels,
    x: torch.Tensor,
    x_scale: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    h = host_memory.new_empty(x, (x.shape[0], kernels.shape.inter), torch.uint8)
    h_scale = h.new_empty((x.shape[0], kernels.shape.inter // BLOCK))
    kernels.linear1(x, x_scale, w1.flatten(0, 1), w1_scale.flatten(0, 1), offsets, weight, h, h_scale)
    return h, h_scale


def activation(*operands: torch.Tensor, limit: float, backend: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The activation between the layers of :func:`expert_ffn`, for its tensors: E4M3 bytes [n, inter], n not 0, and
    scale bytes [n, inter/32]."""
    kernels = ffn_kernels(*(meta(tensor) for tensor in operands), limit, backend)
    assert kernels is not None
    return _first_layer(kernels, *operands[:6])


def _used_rows(offsets: torch.Tensor, rows: int) -> int:
    """Number of rows that experts have, where ``offsets`` are what :func:`expert_ffn` states."""
    given: list[int] = offsets.tolist()
    if given[0] != 0 or given[-1] > rows or given != sorted(given):
        raise ValueError(f"offsets: given {given[:8]}...{given[-1:]}, wanted ascending from 0 to at most n = {rows}")
    return given[-1]


def _ffn_fake(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    offsets: torch.Tensor,
    weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    limit: float,
    backend: str | None,
) -> torch.Tensor:
    return x.new_empty((x.shape[0], w2.shape[1]), dtype=torch.float32)


@functools.lru_cache(maxsize=1024)
def _combine_kernel(y: Meta, inverse: Meta, backend: str | None) -> Executable | None:
    expect("y", y, (torch.float32,), ("n", "hidden"), y.device)
    expect("inverse", inverse, (torch.int32,), ("T", "k"), y.device)
    device = choose_device(backend, y.device)
    if y.shape.numel() == 0 or inverse.shape.numel() == 0:
        return None
    extents = {"hidden": y.shape[1], "slots": inverse.shape[1]}
    return tuned(f"{KERNELS}.combine:moe_combine", device, "combine", inverse.shape[0], 0, **extents)


def _combine_impl(y: torch.Tensor, inverse: torch.Tensor, backend: str | None) -> torch.Tensor:
    run = _combine_kernel(meta(y), meta(inverse), backend)
    out = host_memory.new_empty(y, (inverse.shape[0], y.shape[1]), torch.bfloat16)
    if inverse.device.type == "cpu" and inverse.numel():
        low, high = (int(bound) for bound in torch.aminmax(inverse))
        if low < -1 or high >= y.shape[0]:
            wrong = low if low < -1 else high
            raise ValueError(f"inverse: given row {wrong}, wanted -1 (skipped) to {y.shape[0] - 1}")
    if run is None:
        return out.zero_()
    run(y, inverse, out)
    return out


def _combine_fake(y: torch.Tensor, inverse: torch.Tensor, backend: str | None) -> torch.Tensor:
    return y.new_empty((inverse.shape[0], y.shape[1]), dtype=torch.bfloat16)


_plan = define(
    "moe_dispatch_plan(Tensor topk_idx, int experts, str? backend) -> (Tensor, Tensor, Tensor)", _plan_impl, _plan_fake
)
_ffn = define(
    "moe_expert_ffn(Tensor x, Tensor x_scale, Tensor offsets, Tensor weight, Tensor w1, Tensor w1_scale, Tensor w2, "
    "Tensor w2_scale, float limit, str? backend) -> Tensor",
    _ffn_impl,
    _ffn_fake,
)
_combine = define("moe_combine(Tensor y, Tensor inverse, str? backend) -> Tensor", _combine_impl, _combine_fake)
