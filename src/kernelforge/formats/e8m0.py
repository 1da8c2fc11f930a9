"""E8M0 block scales: byte b stands for 2^(b - 127), 0xFF for NaN.

OCP Microscaling Formats 1.0, section 5.4.1. The contract reads scales through :func:`read_scale`, which keeps every
later product and sum away from subnormals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BIAS = 127
NAN = 0xFF

LOWEST_READ = -50
"""Scales below 2^LOWEST_READ read as +0."""

HIGHEST_READ = 63
"""Scales above 2^HIGHEST_READ read as +Inf."""


def _all_read() -> NDArray[np.float32]:
    exponent = np.arange(256) - BIAS
    read = np.ldexp(np.float32(1), np.clip(exponent, LOWEST_READ, HIGHEST_READ)).astype(np.float32)
    read[exponent < LOWEST_READ] = 0
    read[exponent > HIGHEST_READ] = np.inf
    read[NAN] = np.nan
    result: NDArray[np.float32] = read
    return result


_READ = _all_read()


def read_scale(scale: ArrayLike) -> NDArray[np.float32]:
    """Scales (float32) as the contract reads them: 2^(b - 127) in [2^-50, 2^63], +0 below, +Inf above, NaN for 0xFF."""
    result: NDArray[np.float32] = _READ[np.asarray(scale)]
    return result


def decode(scale: ArrayLike) -> NDArray[np.float64]:
    """Scales by the letter of the OCP specification, without read thresholds (float64 holds all of them)."""
    byte = np.asarray(scale)
    return np.where(byte == NAN, np.nan, np.ldexp(1.0, byte.astype(np.int32) - BIAS))


def encode(exponent: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Scale bytes of 2^exponent; the exponent is clamped to [-127, 127]."""
    result: NDArray[np.uint8] = (np.clip(exponent, -BIAS, BIAS) + BIAS).astype(np.uint8)
    return result
