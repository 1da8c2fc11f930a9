"""bfloat16 and binary16 by their bits, for NumPy, which has no bfloat16 (bits travel as uint16)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NAN = 0x7FC0
"""The one bfloat16 NaN that is written."""

FLOAT32_NAN = np.uint32(0x7FC00000)
"""Bits of the one float32 NaN that is written."""


def encode(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of ``x`` (float32) rounded to bfloat16, nearest even; overflow gives infinity, every NaN 0x7FC0."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    result: NDArray[np.uint16] = np.where(np.isnan(x), np.uint32(NAN), rounded).astype(np.uint16)
    return result


def decode(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Values (float32) of bfloat16 bits; exact, -0 and NaN payloads included."""
    result: NDArray[np.float32] = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return result


def canonical(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """``x`` (float32) as an op writes it: every NaN is 0x7FC00000 and -0 is +0."""
    bits = np.where(np.isnan(x), FLOAT32_NAN, np.ascontiguousarray(x, np.float32).view(np.uint32))
    return np.where(x == 0, np.uint32(0), bits).view(np.float32)


def encode_binary16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of ``x`` (float32) rounded to binary16, nearest even: overflow gives infinity, subnormal results are kept,
    every NaN is 0x7E00 and a zero result is +0."""
    with np.errstate(over="ignore", under="ignore"):
        bits = x.astype(np.float16).view(np.uint16)
    bits = np.where(np.isnan(x), np.uint16(0x7E00), bits)
    return np.where(bits == 0x8000, np.uint16(0), bits)
