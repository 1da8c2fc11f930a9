"""A mixture-of-experts layer: public function, checks, torch registration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..support import LIBRARY, bytes_of, define, meta, require_numerics, require_tensor
from . import local
from .dispatch import Operands, check, dispatch
from .gradient import backward
from .schedule.program import require_schedule, wave_argument

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
            ``w1`` to ``w2_scale``, and its own tokens, as many as it has. All ranks must call; where one needs
            gradients all do, and all must run the backward pass. None for one process.
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
    check(*(meta(tensor) for tensor in operands), backend)
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


def layer_gradients(
    grad: torch.Tensor,
    operands: Sequence[torch.Tensor],
    swiglu_limit: float | None,
    weights: bool,
    group: ProcessGroup | None,
    waves: int | str,
    schedule: str,
    backend: str | None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of :func:`mega_moe` in x, topk_weight and, with ``weights``, in the values that w1 and w2 stand for.

    Args:
        grad: of the result, ``bfloat16`` [T, hidden], contiguous.
        operands: the seven tensors, x to w2_scale.
    """
    if group is not None:
        from .parallel.gradient import layer_gradients_over

        return layer_gradients_over(group, grad, operands, swiglu_limit, weights, waves, schedule, backend)
    found: tuple[torch.Tensor, ...] = backward(grad, *operands, local.clamp_limit(swiglu_limit), weights, backend)
    return found if weights else (*found[:2], None, None)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.limit, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grad_x, grad_weight, _, _ = backward(grad.contiguous(), *ctx.saved_tensors, ctx.limit, False, ctx.backend)
    return grad_x, None, grad_weight, None, None, None, None, None, None


torch.library.register_autograd("kernelforge::mega_moe", _gradient, setup_context=_save, lib=LIBRARY)
