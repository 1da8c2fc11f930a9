"""Row sums in a written order (contract C7) as TileLang macros; the twins of ``numerics/row_sum.py``.

``row_sum(x, out)`` sums a whole tile. A row longer than a tile is summed by ``clear_lanes`` once, ``accumulate_lanes``
per column tile (ascending, each but the last a multiple of 32 columns wide), ``join_lanes`` at the end; any tile width
gives the same bits. ``row_sum_of(values)`` sums up to 32 scalars inside a ``T.Parallel`` body, in the order of
R(len(values)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tilelang.language as T

from ..row_sum import LANES
from .composite import composite
from .rounding import canonical_bits


def _canonical(total: Any) -> Any:
    """NaN as 0x7FC00000 and -0 as +0."""
    return T.reinterpret(canonical_bits(T.reinterpret(total, "int32")), "float32")


def column_tile(columns: int, wanted: int) -> int:
    """Columns per tile of a long row: the largest multiple of 32 up to ``wanted`` that divides ``columns``."""
    return max(width for width in range(LANES, max(wanted, LANES) + 1, LANES) if columns % width == 0)


def ordered_sum(values: Sequence[Any]) -> Any:
    """The sum of at most 32 scalars in R(n)'s order, but for a sum of nothing but -0."""
    if len(values) == 4:
        return (values[0] + values[1]) + (values[2] + values[3])
    lanes = list(values)
    width = LANES
    while width > 1:
        width //= 2
        # A lane without an element holds +0, and adding it changes no sum but -0.
        lanes = [
            lane + lanes[index + width] if index + width < len(lanes) else lane
            for index, lane in enumerate(lanes[:width])
        ]
    return lanes[0]


@T.macro
def clear_lanes(lanes: Any) -> None:
    """lanes[i, l] = +0 (float32 [bm, 32])."""
    for i, lane in T.Parallel(lanes.shape[0], LANES):
        lanes[i, lane] = T.float32(0)


@T.macro
def accumulate_lanes(lanes: Any, x: Any) -> None:
    """lanes[i, l] += x[i, l], then x[i, l + 32], ... ascending (float32 [bm, 32] and [bm, n])."""
    columns = x.shape[1]
    for i, lane in T.Parallel(lanes.shape[0], LANES):
        for j in T.serial((columns + LANES - 1) // LANES):
            if j * LANES + lane < columns:
                lanes[i, lane] = lanes[i, lane] + x[i, j * LANES + lane]


@T.macro
def join_lanes(lanes: Any, out: Any) -> None:
    """out[i] = the sum of lanes[i, :], by halves; ``lanes`` is overwritten. Rows of 4 have an order of their own."""
    for i, lane in T.Parallel(lanes.shape[0], 16):
        lanes[i, lane] = lanes[i, lane] + lanes[i, lane + 16]
    for i, lane in T.Parallel(lanes.shape[0], 8):
        lanes[i, lane] = lanes[i, lane] + lanes[i, lane + 8]
    for i, lane in T.Parallel(lanes.shape[0], 4):
        lanes[i, lane] = lanes[i, lane] + lanes[i, lane + 4]
    for i, lane in T.Parallel(lanes.shape[0], 2):
        lanes[i, lane] = lanes[i, lane] + lanes[i, lane + 2]
    for i in T.Parallel(lanes.shape[0]):
        total = T.alloc_var("float32")
        total = lanes[i, 0] + lanes[i, 1]
        out[i] = _canonical(total)


@T.macro
def row_sum(x: Any, out: Any) -> None:
    """out[i] = R(n) of x[i, :].

    Args:
        x: float32 [bm, n] tile in shared memory; elements are 0 or at least 2^-100 in magnitude.
        out: float32 [bm] tile in shared memory.
    """
    with composite("row_sum", x, out):
        if x.shape[1] == 4:
            for i in T.Parallel(x.shape[0]):
                total = T.alloc_var("float32")
                total = (x[i, 0] + x[i, 1]) + (x[i, 2] + x[i, 3])
                out[i] = _canonical(total)
        else:
            lanes = T.alloc_shared((x.shape[0], LANES), "float32")
            clear_lanes(lanes)
            accumulate_lanes(lanes, x)
            join_lanes(lanes, out)


@T.macro
def row_sum_of(values: Sequence[Any]) -> Any:
    """R(n) of a list of 1 to 32 float32 scalars, inside a ``T.Parallel`` body."""
    total = T.alloc_var("float32")
    total = ordered_sum(values)
    total = _canonical(total)
    return total
