"""Round-to-nearest-even onto the finite values of a small float format.

The positive values of every format here are ordered like their codes, so rounding is a search among the midpoints
of neighbouring codes; a tie goes to the even code, which is the even significand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def thresholds(positive_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least float64 that rounds to code ``c + 1`` or above, for each code ``c``.

    Args:
        positive_values: the format's values for codes 0, 1, 2, ... in ascending order.
    """
    midpoints = (positive_values[:-1] + positive_values[1:]) / 2
    tie_rounds_up = np.arange(midpoints.size) % 2 == 1
    return np.where(tie_rounds_up, midpoints, np.nextafter(midpoints, np.inf))


def nearest_magnitude_code(x: NDArray[np.floating], bounds: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Code of the value nearest to ``|x|``, saturating at the largest; ``x`` must be exact in float64."""
    codes: NDArray[np.uint8] = np.searchsorted(bounds, np.abs(x.astype(np.float64)), side="right").astype(np.uint8)
    return codes
