"""The exact dot (contract C2) in NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INT32_MAX = 2**31 - 1


def exact_dot(a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int32]:
    """out[i, j] = sum over k of a[i, k] * b[j, k], exactly.

    Args:
        a: [m, k] int8, or int16 windows in [-32639, 32639].
        b: [n, k] int8.

    Raises:
        OverflowError: a sum does not fit int32: the caller's bound is wrong.
    """
    # Products below 2^23 and sums below 2^53 are exact in float64 whatever the order.
    wide = a.astype(np.float64) @ b.astype(np.float64).T
    if wide.size and np.abs(wide).max() > INT32_MAX:
        raise OverflowError("exact_dot: a sum passes int32; shorten the contraction or narrow the windows")
    return wide.astype(np.int32)
