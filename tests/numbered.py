"""Data in which every place can be told from every other."""

from __future__ import annotations

from typing import Any

import numpy as np


def numbered(shape: tuple[int, ...], values: np.ndarray, dtype: Any) -> list[np.ndarray]:
    """Arrays whose elements, one from each, are different in every place, and in no order.

    Where there are fewer ``values`` than places, one array cannot tell them all apart: then these are the digits of
    the places' numbers, the last one first.
    """
    count = int(np.prod(shape))
    numbers = np.random.default_rng(count).permutation(count)
    digits, reach = [], 1
    while reach < count or not digits:
        digits.append(values[numbers // reach % len(values)].astype(dtype).reshape(shape))
        reach *= len(values)
    return digits
