"""E4M3 (FP8, the "FN" variant): sign, four exponent bits (bias 7), three mantissa bits; up to 448, no infinity.

OCP 8-bit Floating Point 1.0. The codes 0x7F and 0xFF are NaN; the least positive value is 2^-9.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import rounding

NAN = 0x7F
"""The NaN code written; 0xFF is read as NaN too."""

MAX = 448.0
"""Largest finite value, code 0x7E."""

MAX_EXPONENT = 8
"""floor(log2(MAX)): ``emax_elem`` of the OCP specification."""


def _all_values() -> NDArray[np.float32]:
    code = np.arange(128)
    field, mantissa = code >> 3, code & 7
    significand = np.where(field == 0, mantissa, 8 + mantissa)
    positive = np.ldexp(significand.astype(np.float32), np.maximum(field, 1) - 10)
    positive[NAN] = np.nan
    return np.concatenate([positive, np.where(code == 0, 0, -positive)]).astype(np.float32)


VALUES = _all_values()
"""Value of every code; 0x80 (-0) reads as +0."""

_THRESHOLDS = rounding.thresholds(VALUES[:NAN].astype(np.float64))


def decode(codes: ArrayLike) -> NDArray[np.float32]:
    """Values (float32) of E4M3 codes; -0 reads as +0, 0x7F and 0xFF as NaN."""
    result: NDArray[np.float32] = VALUES[np.asarray(codes)]
    return result


def is_nan(codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a code is NaN."""
    nan: NDArray[np.bool_] = (codes & np.uint8(0x7F)) == NAN
    return nan


def encode(x: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Codes of ``x`` rounded to nearest even, saturating at 448 (infinities too); NaN becomes 0x7F.

    Args:
        x: float array whose elements are exact in float64. The sign is kept, also of zero.
    """
    nan = np.isnan(x)
    magnitude = rounding.nearest_magnitude_code(np.where(nan, 0, x), _THRESHOLDS)
    signed = magnitude | (np.signbit(x).astype(np.uint8) << np.uint8(7))
    result: NDArray[np.uint8] = np.where(nan, np.uint8(NAN), signed)
    return result
