"""E2M1 (FP4): sign, two exponent bits, one mantissa bit; values 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

OCP Microscaling Formats 1.0, section 5.3.3. There is no NaN and no infinity. Two codes share a byte, the even index in
the low nibble.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import rounding

DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the value of every code: the integers a dot product works on."""

VALUES = DOUBLED.astype(np.float32) / np.float32(2)
"""Value of every code; code 8 is -0 and reads as +0."""

MAX = 6.0
"""Largest finite value."""

MAX_EXPONENT = 2
"""floor(log2(MAX)): ``emax_elem`` of the OCP specification."""

_THRESHOLDS = rounding.thresholds(VALUES[:8].astype(np.float64))


def decode(codes: ArrayLike) -> NDArray[np.float32]:
    """Values (float32) of E2M1 codes 0..15, one code per element; -0 reads as +0."""
    result: NDArray[np.float32] = VALUES[np.asarray(codes)]
    return result


def doubled(codes: ArrayLike) -> NDArray[np.int8]:
    """Twice the value (int8 in [-12, 12]) of E2M1 codes, one code per element."""
    result: NDArray[np.int8] = DOUBLED[np.asarray(codes)]
    return result


def encode(x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Codes of ``x`` rounded to nearest even, saturating at 6; the sign is kept, also of zero.

    Args:
        x: float array whose elements are exact in float64; NaN is an error because E2M1 has none.

    Raises:
        ValueError: ``x`` holds a NaN.
    """
    if np.isnan(x).any():
        raise ValueError("x holds NaN, which E2M1 cannot hold; mark the block by its scale instead")
    magnitude = rounding.nearest_magnitude_code(x, _THRESHOLDS)
    result: NDArray[np.uint8] = magnitude | (np.signbit(x).astype(np.uint8) << np.uint8(3))
    return result


def pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack codes [..., K] (K even) two to a byte [..., K/2], the even index in the low nibble."""
    if codes.shape[-1] % 2:
        raise ValueError(f"codes has {codes.shape[-1]} elements along its last axis; an even number is wanted")
    result: NDArray[np.uint8] = (codes[..., 0::2] & np.uint8(15)) | (codes[..., 1::2] << np.uint8(4))
    return result


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes [..., K] of packed bytes [..., K/2]."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2] = packed & np.uint8(15)
    codes[..., 1::2] = packed >> np.uint8(4)
    return codes
