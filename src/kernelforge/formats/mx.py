"""MX blocks: 32 elements along the last axis under one E8M0 scale (OCP Microscaling Formats 1.0, section 6.3).

Quantizers follow the contract (C8): magnitudes below 2^-50 read as zero; a block of zeros has scale byte 0 and zero
codes; a block with an infinity or a NaN has scale byte 0xFF and zero codes; a zero element is always written as +0.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import bf16, e2m1, e4m3, e8m0

BLOCK = 32
"""Elements under one scale."""

SMALLEST_READ = 2.0**-50
"""Magnitudes below this read as +0 everywhere in the contract."""

Element = Literal["e2m1", "e4m3"]
ScaleRule = Literal["ceil", "floor"]
_ELEMENTS = {"e2m1": e2m1, "e4m3": e4m3}


def flush(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """``x`` (float32) as the contract reads it: +0 where ``|x| < 2^-50``."""
    return np.where(np.abs(x) < np.float32(SMALLEST_READ), np.float32(0), x)


def blocks(x: NDArray[Any], name: str = "x") -> NDArray[Any]:
    """View [..., K] as [..., K/32, 32].

    Raises:
        ValueError: K is not a positive multiple of 32.
    """
    if x.ndim == 0 or x.shape[-1] == 0 or x.shape[-1] % BLOCK:
        raise ValueError(f"{name} has shape {x.shape}; its last axis must be a positive multiple of {BLOCK}")
    return x.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)


def scale_exponent(amax: NDArray[np.float32], element: Element, rule: ScaleRule) -> NDArray[np.int32]:
    """Exponent of a block's scale from its largest magnitude (finite, positive).

    ``"ceil"`` is the least s with ``amax <= MAX * 2^s``, so nothing saturates; ``"floor"`` is OCP's
    ``floor(log2(amax)) - emax_elem``, under which elements above MAX * 2^s saturate.
    """
    if rule not in ("ceil", "floor"):
        raise ValueError(f"scale_rule is {rule!r}; 'ceil' or 'floor' is wanted")
    kind = _ELEMENTS[element]
    exponent = np.frexp(amax)[1].astype(np.int32) - 1 - kind.MAX_EXPONENT
    if rule == "ceil":
        saturates = amax.astype(np.float64) > np.ldexp(np.float64(kind.MAX), exponent)
        exponent += saturates.astype(np.int32)
    result: NDArray[np.int32] = exponent
    return result


def quantize(
    x: NDArray[np.float32], element: Element, scale_rule: ScaleRule = "ceil"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantize along the last axis in blocks of 32.

    Args:
        x: float32 [..., K], K a multiple of 32.
        element: ``"e2m1"`` or ``"e4m3"``.
        scale_rule: ``"ceil"`` or ``"floor"``, see :func:`scale_exponent`.

    Returns:
        Element codes uint8 [..., K] (one code per byte) and scale bytes uint8 [..., K/32].
    """
    values = blocks(flush(np.asarray(x, np.float32)))
    finite = np.isfinite(values).all(-1)
    values = np.where(finite[..., None], values, np.float32(0))
    amax = np.abs(values).max(-1)
    zero = amax == 0
    exponent = scale_exponent(np.where(zero, np.float32(1), amax), element, scale_rule)
    scale = np.where(finite, np.where(zero, np.uint8(0), e8m0.encode(exponent)), np.uint8(e8m0.NAN))
    scaled = np.ldexp(values.astype(np.float64), -exponent[..., None])
    codes = _ELEMENTS[element].encode(scaled)
    codes = np.where(_ELEMENTS[element].decode(codes) == 0, np.uint8(0), codes)
    return codes.reshape(x.shape), scale


def dequantize(codes: NDArray[np.uint8], scale: NDArray[np.uint8], element: Element) -> NDArray[np.float32]:
    """Values (float32 [..., K]) of element codes [..., K] and scale bytes [..., K/32].

    Scales are read by the contract's rule (:func:`kernelforge.formats.e8m0.read_scale`), so a value is exact, or
    0, Inf, NaN as the matrix product would see it.
    """
    values = blocks(_ELEMENTS[element].decode(codes), "codes")
    if scale.shape != values.shape[:-1]:
        raise ValueError(f"scale has shape {scale.shape}; {values.shape[:-1]} is wanted, one byte per {BLOCK} codes")
    with np.errstate(invalid="ignore"):
        product = values * e8m0.read_scale(scale)[..., None]
    return bf16.canonical(product).reshape(codes.shape)


def quantize_mxfp4(
    x: NDArray[np.float32], scale_rule: ScaleRule = "ceil"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MXFP4: packed codes uint8 [..., K/2] (even index in the low nibble) and scale bytes uint8 [..., K/32]."""
    codes, scale = quantize(x, "e2m1", scale_rule)
    return e2m1.pack(codes), scale


def dequantize_mxfp4(packed: NDArray[np.uint8], scale: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Values (float32 [..., K]) of packed MXFP4."""
    return dequantize(e2m1.unpack(packed), scale, "e2m1")


def quantize_mxfp8(
    x: NDArray[np.float32], scale_rule: ScaleRule = "ceil"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MXFP8 (E4M3): codes uint8 [..., K] and scale bytes uint8 [..., K/32]."""
    return quantize(x, "e4m3", scale_rule)


def dequantize_mxfp8(codes: NDArray[np.uint8], scale: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Values (float32 [..., K]) of MXFP8 (E4M3)."""
    return dequantize(codes, scale, "e4m3")
