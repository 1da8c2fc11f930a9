"""MXFP4 weights as FP8 under coarser scales: public function, checks, torch registration."""

from __future__ import annotations

import functools

import torch

from ...backends import Executable
from ...backends.capabilities import FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, schedule
from ..support import Meta, bytes_of, choose_device, define, expect, meta, require_numerics, require_tensor
from .reference import LosslessError

BLOCK = 32
COLUMNS = 128
GROUPS = ((1, 128), (128, 128))
NEEDS = frozenset({FP32_IEEE, INT32})
BUILDER = "kernelforge.ops.fp4_to_fp8.kernel:fp4_to_fp8"

__all__ = ["LosslessError", "fp4_to_fp8"]


def fp4_to_fp8(
    packed: torch.Tensor,
    scale: torch.Tensor,
    group: tuple[int, int] = (1, 128),
    *,
    on_loss: str = "error",
    numerics: str = "exact",
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """MXFP4 as E4M3 with one power-of-two scale per group: the same values exactly.

    E4M3 has two more exponent bits than E2M1, so the scales of a group's blocks fold into the codes while they lie
    within 2^14 of each other (further where a block does not hold every magnitude; ``docs/numerics.md``).

    Args:
        packed: packed E2M1, uint8 or ``float4_e2m1fn_x2`` [..., N, K/2], K a multiple of 32, contiguous.
        scale: E8M0 bytes, uint8 or ``float8_e8m0fnu`` [..., N, K/32].
        group: (1, 128) or (128, 128) rows x columns under one scale; groups at the edges may be partial, and none
            spans two matrices of a batch.
        on_loss: ``"error"``, or ``"round"``: what does not fit is rounded to nearest even, and a block whose scale
            reads as infinite becomes NaN. Only ``"error"`` waits for the device.
        numerics: ``"exact"``, the contract of ``docs/numerics.md``.
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        Codes, ``float8_e4m3fn`` [..., N, K], and group scales, float32 [..., ceil(N / rows), ceil(K / 128)].

    Raises:
        LosslessError: a group cannot be converted exactly; the message says which.
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    require_numerics("fp4_to_fp8", numerics)
    require_tensor("packed", packed)
    require_tensor("scale", scale)
    if tuple(group) not in GROUPS:
        raise ValueError(f"group: given {group}, wanted (1, 128) or (128, 128)")
    if on_loss not in ("error", "round"):
        raise ValueError(f"on_loss: given {on_loss!r}, wanted 'error' or 'round'")
    codes, group_scale, lossy = _op(bytes_of(packed), bytes_of(scale), group[0], backend)
    if on_loss == "error" and lossy.any():
        first = tuple(lossy.nonzero()[0].tolist())
        raise LosslessError(
            f"scale: group {first} of {group[0]} x {COLUMNS} weights cannot become E4M3 exactly: its E8M0 scales are "
            "more than 2^14 apart or above 2^63; choose a smaller group, or on_loss='round'"
        )
    return codes, group_scale


@functools.lru_cache(maxsize=4096)
def _plan(packed: Meta, scale: Meta, group_rows: int, backend: str | None) -> Executable | None:
    if len(packed.shape) < 2 or packed.shape[-1] == 0 or packed.shape[-1] % (BLOCK // 2):
        raise ValueError(f"packed: given {packed}, wanted [..., N, K/2] with K a positive multiple of {BLOCK}")
    expect("packed", packed, (torch.uint8,), packed.shape, packed.device)
    M, K = packed.shape[:-1].numel(), 2 * packed.shape[-1]
    expect("scale", scale, (torch.uint8,), (*packed.shape[:-1], K // BLOCK), packed.device)
    device = choose_device(backend, packed.device)
    if M == 0:
        return None
    tiles = schedule("fp4_to_fp8", device, M=M, K=K, group_rows=group_rows)
    return executable(KernelSpec.of(BUILDER, NEEDS, K=K, group_rows=group_rows, **tiles), device)


def _impl(
    packed: torch.Tensor, scale: torch.Tensor, group_rows: int, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    run = _plan(meta(packed), meta(scale), group_rows, backend)
    codes, group_scale, lossy = _fake(packed, scale, group_rows, backend)
    if run is None:
        return codes, group_scale, lossy
    N = packed.shape[-2]
    operands = packed, scale, codes.view(torch.uint8), group_scale, lossy
    if N % group_rows == 0:  # groups of neighbouring matrices do not touch: the batch is one tall matrix
        run(*(tensor.view(-1, tensor.shape[-1]) for tensor in operands))
    else:
        for matrix in zip(*(tensor.view(-1, *tensor.shape[-2:]) for tensor in operands), strict=True):
            run(*matrix)
    return codes, group_scale, lossy


def _fake(
    packed: torch.Tensor, scale: torch.Tensor, group_rows: int, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    *batch, N, half_K = packed.shape
    groups = (*batch, -(-N // group_rows), -(-2 * half_K // COLUMNS))
    codes = packed.new_empty((*batch, N, 2 * half_K), dtype=torch.float8_e4m3fn)
    return codes, packed.new_empty(groups, dtype=torch.float32), packed.new_empty(groups, dtype=torch.uint8)


_op = define(
    "fp4_to_fp8(Tensor packed, Tensor scale, int group_rows, str? backend) -> (Tensor, Tensor, Tensor)", _impl, _fake
)
