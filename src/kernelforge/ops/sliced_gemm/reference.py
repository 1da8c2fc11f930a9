"""Products of BF16 and float32 matrices by exact integer dots: this function defines the bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...formats.mx import flush as read
from ...numerics.window import CHUNK, sliced_dot, window

Float32 = NDArray[np.float32]


def product(a: Float32, b: Float32, a_slices: int = 2, b_slices: int = 2, step: int = CHUNK) -> Float32:
    """float32 [M, N] = a [M, K] b [N, K]^T: C4 over chunks of ``step``, added ascending from +0.

    A row whose chunk holds an infinity or a NaN makes NaN of its dots. Two slices for BF16 values, three for float32.
    """
    total = np.zeros((a.shape[0], b.shape[0]), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, a.shape[1], step):
            parts = [read(side[:, start : start + step]) for side in (a, b)]
            usable = [np.isfinite(part).all(-1, keepdims=True) for part in parts]
            finite = [np.where(good, part, np.float32(0)) for part, good in zip(parts, usable, strict=True)]
            chunk = sliced_dot(window(finite[0], a_slices), window(finite[1], b_slices))
            total = total + np.where(usable[0] & usable[1].T, chunk, np.float32(np.nan))
    return bf16.canonical(total)
