"""MX block accumulation (contract C3) in NumPy: what ``tile.mx_block_accumulate`` computes, written for reading.

    acc[m, n] = fl(acc[m, n] + fl(float(I[m, n, b]) * fl(fa[m, b] * fw[n, b])))     for blocks b ascending

``I`` is the exact integer dot of a block: twice the weights' E2M1 values times the activations' integers; ``fa`` and
``fw`` are what those integers are worth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats import bf16, e2m1, e4m3, e8m0, mx
from . import window

BLOCK = mx.BLOCK
SCALE_GROUP = 128
"""Activations under one float32 scale in format ``e4m3_f32``."""

A_FORMATS = ("e2m1", "e4m3_e8m0", "e4m3_f32", "bf16")
"""Activation formats; the position is the code that kernels use."""

LARGEST_FACTOR = np.float32(2.0**e8m0.HIGHEST_READ)

NAN = bf16.FLOAT32_NAN.view(np.float32)


class Operand(NamedTuple):
    """Integers of a matrix and their worth: ``values = q * factor``, one factor for every block of 32.

    Attributes:
        q: int32 [rows, K]; twice E2M1 values, or windows of at most 32639.
        factor: float32 [rows, K/32]; finite factors are in [2^-124, 2^63] or 0.
    """

    q: NDArray[np.int32]
    factor: NDArray[np.float32]


def weights(packed: NDArray[np.uint8], scale: NDArray[np.uint8]) -> Operand:
    """Packed E2M1 [N, K/2] with E8M0 bytes [N, K/32].

    ``q`` is twice the value and ``factor`` the scale, not half of it: the activations' factor carries the rest.
    """
    return Operand(e2m1.doubled(e2m1.unpack(packed)).astype(np.int32), e8m0.read_scale(scale))


def _windows(values: NDArray[np.float32], unusable: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Windows [M, K/32, 32] of blocks and 2^(e - 16) [M, K/32]; blocks marked unusable become zeros."""
    block = window.window(np.where(unusable[..., None], np.float32(0), values))
    return block.q, np.ldexp(np.float32(1), block.exponent - 16).astype(np.float32)


def _limited(factor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Infinite above 2^63 in magnitude, like an E8M0 scale."""
    return np.where(np.abs(factor) > LARGEST_FACTOR, np.copysign(np.float32(np.inf), factor), factor)


def activations(a: NDArray[Any], a_scale: NDArray[Any] | None, a_format: str) -> Operand:
    """Decode an activation matrix.

    Args:
        a: uint8 [M, K/2] (``e2m1``), uint8 [M, K] (``e4m3_*``) or uint16 bits [M, K] (``bf16``).
        a_scale: uint8 [M, K/32] (``e2m1``, ``e4m3_e8m0``), float32 [M, ceil(K/128)] (``e4m3_f32``), None (``bf16``).
        a_format: one of :data:`A_FORMATS`.
    """
    if a_format not in A_FORMATS:
        raise ValueError(f"a_format is {a_format!r}; one of {A_FORMATS} is wanted")
    if (a_scale is None) != (a_format == "bf16"):
        raise ValueError(f"a_scale is {'missing' if a_scale is None else 'given'} for a_format {a_format!r}")
    if a_format == "bf16" or a_scale is None:
        values = mx.blocks(mx.flush(bf16.decode(a)), "a")
        unusable = ~np.isfinite(values).all(-1)
        q, factor = _windows(values, unusable)
        factor = _limited(factor)
    elif a_format == "e2m1":
        q = e2m1.doubled(e2m1.unpack(a)).astype(np.int32)
        return Operand(q, e8m0.read_scale(a_scale) * np.float32(0.25))
    else:
        values = mx.blocks(e4m3.decode(a), "a")
        unusable = np.isnan(values).any(-1)
        q, factor = _windows(values, unusable)
        if a_format == "e4m3_e8m0":
            factor = factor * e8m0.read_scale(a_scale)
        else:
            per_block = np.repeat(mx.flush(a_scale), SCALE_GROUP // BLOCK, axis=-1)[..., : factor.shape[-1]]
            with np.errstate(over="ignore", invalid="ignore"):
                factor = _limited(mx.flush(per_block * factor))
    return Operand(q.reshape(a.shape), np.where(unusable | np.isnan(factor), NAN, factor))


def accumulate(acc: NDArray[np.float32], a: Operand, w: Operand) -> NDArray[np.float32]:
    """``acc`` [M, N] plus the terms of all blocks, in ascending order, each addition rounded on its own.

    A block's integers sum to below 2^24 in magnitude whatever the order, so a float32 matrix product is exact.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for b in range(a.factor.shape[-1]):
            block = np.s_[:, b * BLOCK : (b + 1) * BLOCK]
            integer = a.q[block].astype(np.float32) @ w.q[block].astype(np.float32).T
            acc = acc + integer * (a.factor[:, b, None] * w.factor[None, :, b])
    return acc


def mx_block_accumulate(
    acc: NDArray[np.float32],
    a: NDArray[Any],
    a_scale: NDArray[Any] | None,
    w: NDArray[np.uint8],
    w_scale: NDArray[np.uint8],
    a_format: str,
) -> NDArray[np.float32]:
    """The running sums ``acc`` [M, N] after the blocks of ``a`` [M, K] and ``w`` [N, K], stored as in memory."""
    return accumulate(acc, activations(a, a_scale, a_format), weights(w, w_scale))
