"""A mixture-of-experts layer: public function, checks, torch registration."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..mx_quantize.op import quantize_mxfp8
from ..support import Meta, bytes_of, choose_device, define, expect, meta, require_numerics, require_tensor
from . import local
from .schedule.program import require_schedule, wave_argument

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Operands(NamedTuple):
    """Tensors of a call, in the order of the schema."""

    x: torch.Tensor
    topk_idx: torch.Tensor
    topk_weight: torch.Tensor
    w1: torch.Tensor
    w1_scale: torch.Tensor
    w2: torch.Tensor
    w2_scale: torch.Tensor


def mega_moe(
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    group: ProcessGroup | None = None,
    waves: int | str = "auto",
    swiglu_limit: float | None = 10.0,
    *,
    schedule: str = "waves",
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor:
    """A mixture-of-experts layer with MXFP4 experts and MXFP8 activations; the same bits on every device.

    Tokens are quantized to MXFP8 and sorted by expert. An expert computes W2 (silu(gate) * up * weight), gate and up
    from W1, gate clamped above at the limit and up to +-limit (DeepSeek-V4's experts); the token's weight is applied
    before the activation is quantized to MXFP8. A token's results are added in slot order in float32 and rounded once.

    Args:
        x: ``bfloat16`` [T, hidden].
        topk_idx: int32 [T, k], the experts of each token; -1 is a dropped slot. Checked on the CPU; on other devices a
            slot outside [-1, E) is dropped.
        topk_weight: float32 [T, k].
        w1: packed FP4 [E, 2 * inter, hidden/2], even index in the low nibble: an expert's ``inter`` gate rows, then its
            ``inter`` up rows.
        w1_scale: E8M0 bytes [E, 2 * inter, hidden/32].
        w2, w2_scale: [E, hidden, inter/2] and [E, hidden, inter/32]. hidden and inter are multiples of 32.
        group: ranks that share the experts: rank r of R passes experts ``[r * E, (r + 1) * E)`` of ``R * E`` in
            ``w1`` to ``w2_scale``, and its own tokens, as many as it has. All ranks must call. None for one process.
        waves: runs of experts whose tokens travel, are computed and return one after another: while a wave is computed,
            the next one's tokens and the last one's results travel. ``"auto"`` takes the number that is best by the
            rates measured so far.
        swiglu_limit: None for no clamp.
        schedule: ``"waves"``; or ``"serial"``, ``"two_stage"``, for comparison. The bits are the same.
        numerics: ``"exact"``, the contract of ``docs/numerics.md`` (mixture of experts).
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        ``bfloat16`` [T, hidden]. A token without experts is 0. Beside what was given a call needs at most
        ``T * k * (hidden * 161/32 + inter * 33/32 + 64) + 4 * T * hidden`` bytes: rows and their activation in MXFP8,
        float32 results of each row, the plan; tokens in MXFP8 and the result.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
        PeerRefused: another rank's arguments were wrong or differ from this rank's.
        MoeCommunicationError: a rank died, did not answer in time or failed.
    """
    require_numerics("mega_moe", numerics)
    operands = Operands(x, topk_idx, topk_weight, w1, w1_scale, w2, w2_scale)
    for name, value in operands._asdict().items():
        require_tensor(name, value)
    packed: list[Any] = [bytes_of(tensor) for tensor in operands[3:]]
    if group is not None:
        from .parallel import mega_moe_over  # torch.distributed is not everywhere

        return mega_moe_over(group, x, topk_idx, topk_weight, packed, swiglu_limit, waves, schedule, backend)
    require_schedule(schedule)
    wave_argument(waves)
    out: torch.Tensor = _moe(*operands[:3], *packed, local.clamp_limit(swiglu_limit), backend)
    return out


@functools.lru_cache(maxsize=1024)
def _check(
    x: Meta,
    topk_idx: Meta,
    topk_weight: Meta,
    w1: Meta,
    w1_scale: Meta,
    w2: Meta,
    w2_scale: Meta,
    backend: str | None,
) -> None:
    shape = local.check_experts(w1, w1_scale, w2, w2_scale, x)
    x = expect("x", x, (torch.bfloat16,), ("T", shape.hidden), x.device)
    topk_idx = expect("topk_idx", topk_idx, (torch.int32,), (x.shape[0], "k"), x.device)
    expect("topk_weight", topk_weight, (torch.float32,), tuple(topk_idx.shape), x.device)
    choose_device(backend, x.device)


class Dispatched(NamedTuple):
    """Tokens as rows sorted by expert.

    Attributes:
        plan: where each pair went.
        token: int64 [n], of each row.
        weight: float32 [n].
        x, x_scale: MXFP8 rows.
    """

    plan: local.Plan
    token: torch.Tensor
    weight: torch.Tensor
    x: torch.Tensor
    x_scale: torch.Tensor


def dispatch(
    x: torch.Tensor, topk_idx: torch.Tensor, topk_weight: torch.Tensor, experts: int, backend: str | None
) -> Dispatched:
    """Plan, quantize and gather; rows of dropped pairs, behind all experts, hold pair 0."""
    plan = local.dispatch_plan(topk_idx, experts, backend)
    codes, scale = quantize_mxfp8(x, backend=backend)
    pair = plan.order.clamp(min=0).long()
    token = pair // max(topk_idx.shape[1], 1)
    rows = codes.view(torch.uint8)[token].view(torch.float8_e4m3fn)
    return Dispatched(plan, token, topk_weight.flatten()[pair], rows, scale[token])


def _impl(
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    limit: float,
    backend: str | None,
) -> torch.Tensor:
    operands = Operands(x, topk_idx, topk_weight, w1, w1_scale, w2, w2_scale)
    _check(*(meta(tensor) for tensor in operands), backend)
    rows = dispatch(x, topk_idx, topk_weight, w1.shape[0], backend)
    y = local.expert_ffn(
        rows.x, rows.x_scale, rows.plan.offsets, rows.weight, w1, w1_scale, w2, w2_scale, limit, backend
    )
    return local.combine(y, rows.plan.inverse, backend)


def _fake(
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weight: torch.Tensor,
    w1: torch.Tensor,
    w1_scale: torch.Tensor,
    w2: torch.Tensor,
    w2_scale: torch.Tensor,
    limit: float,
    backend: str | None,
) -> torch.Tensor:
    return torch.empty_like(x)


_moe = define(
    "mega_moe(Tensor x, Tensor topk_idx, Tensor topk_weight, Tensor w1, Tensor w1_scale, Tensor w2, Tensor w2_scale, "
    "float limit, str? backend) -> Tensor",
    _impl,
    _fake,
)
