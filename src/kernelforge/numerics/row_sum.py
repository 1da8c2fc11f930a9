"""Row sums in a written order (contract C7), in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LANES = 32
"""Partial sums of a row."""

NAN_BITS = 0x7FC00000


def row_sum(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """R(n) over the last axis: float32 [..., n] to [...].

    Lane l of 32 sums elements l, l + 32, ... ascending from +0; the lanes are then joined by halves: l with l + 16,
    with l + 8, 4, 2, 1. For n = 4 the order is (x0 + x1) + (x2 + x3). NaN is 0x7FC00000 and -0 is +0.

    Elements are 0 or at least 2^-100 in magnitude, as every value of the contract is; then no partial sum is subnormal.

    Raises:
        TypeError: ``x`` is not a float32 array.
        ValueError: ``x`` has no axis.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        given = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"row_sum: x is {given}; it must be a float32 array: x.astype(np.float32)")
    if x.ndim == 0:
        raise ValueError("row_sum: x is a scalar; it must have a last axis to sum over")
    with np.errstate(all="ignore"):
        total = _sum_of_four(x) if x.shape[-1] == 4 else _join(_lanes(x))
    return np.where(np.isnan(total), np.uint32(NAN_BITS).view(np.float32), np.where(total == 0, np.float32(0), total))


def _sum_of_four(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return (x[..., 0] + x[..., 1]) + (x[..., 2] + x[..., 3])


def _lanes(x: NDArray[np.float32]) -> NDArray[np.float32]:
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for start in range(0, x.shape[-1], LANES):
        part = x[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    return lanes


def _join(lanes: NDArray[np.float32]) -> NDArray[np.float32]:
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width:]
    return lanes[..., 0]
