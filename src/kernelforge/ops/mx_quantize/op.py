"""Quantization to MX blocks and back: public functions, checks, torch registration."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...backends import Executable
from ...backends.capabilities import FP32_IEEE, INT32
from ...formats import e8m0
from ...runtime import KernelSpec, executable, schedule
from ..support import Meta, bytes_of, choose_device, define, expect, meta, require_numerics, require_tensor

BLOCK = 32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCALE_RULES = ("ceil", "floor")
NEEDS = frozenset({FP32_IEEE, INT32})
KERNELS = "kernelforge.ops.mx_quantize.kernel"


def quantize_mxfp4(
    x: torch.Tensor, scale_rule: str = "ceil", *, numerics: str = "exact", backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to MXFP4: blocks of 32 along the last axis, E2M1 elements under one E8M0 scale.

    Args:
        x: [..., K], K a multiple of 32, contiguous; ``float32``, ``bfloat16`` or ``float16``.
        scale_rule: ``"ceil"``, the smallest power of two under which nothing saturates, or ``"floor"``, that of OCP
            MX 1.0, section 6.3, under which the largest elements of a block may saturate at 6.
        numerics: ``"exact"``, the contract of ``docs/numerics.md`` (C8).
        backend: None for the tensor's own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        Packed codes, uint8 [..., K/2], the even index in the low nibble, and scale bytes, uint8 [..., K/32]. A block
        of zeros (magnitudes below 2^-50 are zeros) has scale byte 0 and zero codes; a block with an infinity or a NaN
        has scale byte 0xFF, which is NaN for all 32 elements, and zero codes.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    return _quantize("quantize_mxfp4", x, "e2m1", scale_rule, numerics, backend)


def quantize_mxfp8(
    x: torch.Tensor, scale_rule: str = "ceil", *, numerics: str = "exact", backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize to MXFP8: blocks of 32 along the last axis, E4M3 elements under one E8M0 scale.

    Args:
        x, scale_rule, numerics, backend: as in :func:`quantize_mxfp4`; elements saturate at 448.

    Returns:
        Codes, ``float8_e4m3fn`` [..., K], and scale bytes, uint8 [..., K/32]; special blocks as in
        :func:`quantize_mxfp4`.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`quantize_mxfp4`.
    """
    return _quantize("quantize_mxfp8", x, "e4m3", scale_rule, numerics, backend)


def dequantize_mxfp4(
    packed: torch.Tensor,
    scale: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor:
    """The values of MXFP4 elements: exact in ``float32`` and ``bfloat16``, rounded to nearest even in ``float16``.

    Args:
        packed: packed E2M1, uint8 or ``float4_e2m1fn_x2`` [..., K/2], contiguous.
        scale: E8M0 bytes, uint8 or ``float8_e8m0fnu`` [..., K/32]. Read as every op reads them: below 2^-50 as +0,
            above 2^63 as infinity, 0xFF as NaN.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        numerics, backend: as in :func:`quantize_mxfp4`.

    Returns:
        [..., K] of ``dtype``; one NaN, no -0.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`quantize_mxfp4`.
    """
    require_numerics("dequantize_mxfp4", numerics)
    require_tensor("packed", packed)
    require_tensor("scale", scale)
    return _dequantize_op(bytes_of(packed), bytes_of(scale), dtype, backend)


def mxfp8_values(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``bfloat16`` values of MXFP8 rows, scales read by C1; exact, a power of two times four bits.

    Args:
        codes: ``float8_e4m3fn`` or its bytes [M, K].
        scale: E8M0 bytes [M, K/32].
    """
    byte = scale.int()
    factor = (byte << 23).view(torch.float32)
    factor = torch.where(byte < e8m0.BIAS + e8m0.LOWEST_READ, 0.0, factor)
    factor = torch.where(byte > e8m0.BIAS + e8m0.HIGHEST_READ, torch.inf, factor)
    factor = torch.where(byte == e8m0.NAN, torch.nan, factor)
    blocks = codes.view(torch.float8_e4m3fn).float().unflatten(-1, (scale.shape[-1], BLOCK))
    return (blocks * factor[..., None]).flatten(-2).bfloat16()


def _quantize(
    op: str, x: torch.Tensor, element: str, scale_rule: str, numerics: str, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    require_numerics(op, numerics)
    require_tensor("x", x)
    codes, scale = _quantize_op(x, element, scale_rule, backend)
    return codes, scale


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _compiled(kernel: str, device: str, M: int, **parameters: Any) -> Executable:
    tiles = schedule("mx_quantize", device, kernel=kernel, M=M, **parameters)
    return executable(KernelSpec.of(f"{KERNELS}:{kernel}", NEEDS, **parameters, **tiles), device)


@functools.lru_cache(maxsize=4096)
def _quantize_plan(x: Meta, element: str, scale_rule: str, backend: str | None) -> Executable | None:
    if scale_rule not in SCALE_RULES:
        raise ValueError(f"scale_rule: given {scale_rule!r}, wanted 'ceil' or 'floor'")
    if not x.shape or x.shape[-1] == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"x: given {x}, wanted [..., K] with K a positive multiple of {BLOCK}")
    expect("x", x, DTYPES, x.shape, x.device)
    device = choose_device(backend, x.device)
    M, K = x.shape[:-1].numel(), x.shape[-1]
    if M == 0:
        return None
    return _compiled("mx_quantize", device, M, K=K, dtype=_name(x.dtype), element=element, scale_rule=scale_rule)


def _quantize_impl(
    x: torch.Tensor, element: str, scale_rule: str, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    run = _quantize_plan(meta(x), element, scale_rule, backend)
    codes, scale = _quantize_fake(x, element, scale_rule, backend)
    if run is not None:
        K, bytes_per_row = x.shape[-1], codes.shape[-1]
        run(x.view(-1, K), codes.view(torch.uint8).view(-1, bytes_per_row), scale.view(-1, K // BLOCK))
    return codes, scale


def _quantize_fake(
    x: torch.Tensor, element: str, scale_rule: str, backend: str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    *rows, K = x.shape
    scale = x.new_empty((*rows, K // BLOCK), dtype=torch.uint8)
    if element == "e2m1":
        return x.new_empty((*rows, K // 2), dtype=torch.uint8), scale
    return x.new_empty((*rows, K), dtype=torch.float8_e4m3fn), scale


@functools.lru_cache(maxsize=4096)
def _dequantize_plan(packed: Meta, scale: Meta, dtype: torch.dtype, backend: str | None) -> Executable | None:
    if dtype not in DTYPES:
        raise TypeError(f"dtype: given {dtype}, wanted one of {', '.join(map(str, DTYPES))}")
    if not packed.shape or packed.shape[-1] == 0 or packed.shape[-1] % (BLOCK // 2):
        raise ValueError(f"packed: given {packed}, wanted [..., K/2] with K a positive multiple of {BLOCK}")
    expect("packed", packed, (torch.uint8,), packed.shape, packed.device)
    M, K = packed.shape[:-1].numel(), 2 * packed.shape[-1]
    expect("scale", scale, (torch.uint8,), (*packed.shape[:-1], K // BLOCK), packed.device)
    device = choose_device(backend, packed.device)
    return _compiled("mxfp4_dequantize", device, M, K=K, dtype=_name(dtype)) if M else None


def _dequantize_impl(
    packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, backend: str | None
) -> torch.Tensor:
    run = _dequantize_plan(meta(packed), meta(scale), dtype, backend)
    out = _dequantize_fake(packed, scale, dtype, backend)
    if run is not None:
        run(packed.view(-1, packed.shape[-1]), scale.view(-1, scale.shape[-1]), out.view(-1, out.shape[-1]))
    return out


def _dequantize_fake(
    packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, backend: str | None
) -> torch.Tensor:
    return packed.new_empty((*packed.shape[:-1], 2 * packed.shape[-1]), dtype=dtype)


_quantize_op = define(
    "mx_quantize(Tensor x, str element, str scale_rule, str? backend) -> (Tensor, Tensor)",
    _quantize_impl,
    _quantize_fake,
)
_dequantize_op = define(
    "dequantize_mxfp4(Tensor packed, Tensor scale, ScalarType dtype, str? backend) -> Tensor",
    _dequantize_impl,
    _dequantize_fake,
)
