"""MXFP4 to FP8: the reference, which defines the bits.

Arrays are NumPy; E4M3 and E8M0 travel as uint8. The kernel is held to these results bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16, e2m1, e4m3, e8m0
from ...formats.mx import BLOCK

LOWEST_SHIFT = np.array([-300, -8, -9, -8, -10, -9, -11, -10])
"""Least d for which an E2M1 magnitude (by code) times 2^d is an E4M3 value; zero is one for every d."""

HIGHEST_SHIFT = np.array([300, 9, 8, 8, 7, 7, 6, 6])
"""Largest such d. Proved in ``kernelforge.proofs.fp4_to_fp8``."""


class LosslessError(ValueError):
    """An MXFP4 group holds scales too far apart to become E4M3 under one scale without rounding."""


class Fp8Weights(NamedTuple):
    """E4M3 codes uint8 [N, K] and one power-of-two scale per group, float32 [ceil(N / rows), ceil(K / columns)]."""

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]


def _groups(per_block: NDArray[Any], group: tuple[int, int], fill: int, reduce: np.ufunc) -> NDArray[Any]:
    """Reduce [N, K/32] over groups of ``group`` rows x columns; the last group of either axis may be partial."""
    rows, blocks = group[0], group[1] // BLOCK
    height, width = per_block.shape
    padded = np.full((-(-height // rows) * rows, -(-width // blocks) * blocks), fill, per_block.dtype)
    padded[:height, :width] = per_block
    tiles = padded.reshape(-1, rows, padded.shape[1] // blocks, blocks)
    result: NDArray[Any] = reduce.reduce(reduce.reduce(tiles, axis=3), axis=1)
    return result


def _spread(per_group: NDArray[Any], group: tuple[int, int], shape: tuple[int, ...], columns: int) -> NDArray[Any]:
    """Repeat a value per group to ``shape`` [N, K / columns]."""
    wide = np.repeat(np.repeat(per_group, group[0], axis=0), group[1] // columns, axis=1)
    return wide[: shape[0], : shape[1]]


def fp4_to_fp8(
    packed: NDArray[np.uint8],
    scale: NDArray[np.uint8],
    group: tuple[int, int] = (1, 128),
    on_loss: str = "error",
) -> Fp8Weights:
    """MXFP4 as E4M3 with one power-of-two scale per group, the same values exactly.

    A block with scale 2^s becomes codes of ``value * 2^(s - g)`` under the group's scale 2^g. That is exact while
    s - g stays within [LOWEST_SHIFT, HIGHEST_SHIFT] of every E2M1 magnitude the block holds: [-8, 6] when it holds
    them all, so scales of one group may differ by 2^14 at least. g is the group's largest s, moved no further than
    exactness demands.

    Args:
        packed: uint8 [N, K/2]; ``scale``: E8M0 uint8 [N, K/32], read by the contract's thresholds.
        group: (1, 128) or (128, 128) rows x columns under one scale; groups at the edges may be partial.
        on_loss: ``"error"``, or ``"round"``: small values are rounded to nearest even, and a block whose scale reads as
            infinite becomes NaN.

    Raises:
        LosslessError: naming the first group that cannot be converted exactly.
    """
    if tuple(group) not in ((1, 128), (128, 128)):
        raise ValueError(f"group is {group}; (1, 128) or (128, 128) is wanted")
    if on_loss not in ("error", "round"):
        raise ValueError(f"on_loss is {on_loss!r}; 'error' or 'round' is wanted")
    codes = e2m1.unpack(packed).reshape(*scale.shape, BLOCK)
    read = e8m0.read_scale(scale)
    infinite, nan = np.isinf(read), np.isnan(read)
    magnitude = np.where((np.isfinite(read) & (read > 0))[..., None], codes & 7, 0)
    counts = (magnitude != 0).any(-1)
    s = scale.astype(np.int64) - e8m0.BIAS

    # Every block leaves an interval for g; a group is exact where its blocks' intervals meet.
    lowest = np.where(counts, s - HIGHEST_SHIFT[magnitude].min(-1), -1000)
    highest = np.where(counts, s - LOWEST_SHIFT[magnitude].max(-1), 1000)
    lowest = _groups(lowest, group, -1000, np.maximum)
    highest = _groups(highest, group, 1000, np.minimum)
    lossy = (lowest > highest) | _groups(infinite.astype(np.int64), group, 0, np.maximum).astype(bool)
    if on_loss == "error" and lossy.any():
        row, column = np.argwhere(lossy)[0]
        raise LosslessError(
            f"scale: group ({row}, {column}) of {group[0]} x {group[1]} weights cannot become E4M3 exactly: its E8M0 "
            "scales are more than 2^14 apart or above 2^63; choose a smaller group, or on_loss='round'"
        )
    largest = _groups(np.where(counts, s, -1000), group, -1000, np.maximum)
    g = np.maximum(np.minimum(largest, highest), lowest)
    g = np.where(largest == -1000, 0, g)

    shift = np.where(counts, s - _spread(g, group, s.shape, BLOCK), 0)
    values = np.ldexp(e2m1.VALUES[magnitude].astype(np.float64), shift[..., None])
    fp8 = e4m3.encode(np.where(codes >= 8, -values, values))
    fp8 = np.where((fp8 & 0x7F) == 0, np.uint8(0), fp8)
    fp8 = np.where((infinite | nan)[..., None], np.uint8(e4m3.NAN), fp8)
    return Fp8Weights(fp8.reshape(packed.shape[0], 2 * packed.shape[1]), np.ldexp(np.float32(1), g).astype(np.float32))


def dequantize_fp8(weights: Fp8Weights, group: tuple[int, int] = (1, 128)) -> NDArray[np.float32]:
    """Values (float32 [N, K]) of E4M3 codes under group scales."""
    codes, scale = weights
    return bf16.canonical(e4m3.decode(codes) * _spread(scale, group, codes.shape, 1))
