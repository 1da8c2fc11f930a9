"""Fixed-point windows and their int8 slices (contract C4), in NumPy.

A window turns the values along a contraction into integers under one power of two: ``x = q * 2^(e - 15)`` up to one
rounding (``e - 23`` with three slices). Cut into int8 slices, windows meet in exact integer dots, whose order does not
matter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LIMIT = {2: 127 * 256 + 127, 3: (127 * 256 + 127) * 256 + 127}
"""Largest window magnitude by slice count: every slice, the highest too, stays within int8."""

CHUNK = 128
"""Elements under one window exponent where a contraction is too long for a single one."""

SMALLEST_RESULT_EXPONENT = -100
"""Sliced dots whose magnitude is below 2^this become +0."""

_EXACT_FLOAT32 = 2**24


class Window(NamedTuple):
    """``q`` int32 [..., L] and ``exponent`` int32 [...]; the value is ``q * 2^(exponent - 8 * slices + 1)``."""

    q: NDArray[np.int32]
    exponent: NDArray[np.int32]
    slices: int


def exponent_of(amax: NDArray[np.floating], slices: int = 2) -> NDArray[np.int32]:
    """Least integer e with ``RNE(amax * 2^(8 * slices - 1 - e)) <= LIMIT[slices]``; 0 where ``amax`` is 0."""
    mantissa, exponent = np.frexp(amax.astype(np.float64))
    passes = np.rint(np.ldexp(mantissa, 8 * slices - 1)) > LIMIT[slices]
    return (exponent + passes).astype(np.int32)


def window(x: NDArray[np.floating], slices: int = 2) -> Window:
    """Window over the last axis.

    Args:
        x: finite values [..., L], exact in float64; the caller has applied the contract's read threshold.
        slices: 2 (16-bit windows: BF16 and E4M3 operands) or 3 (24-bit: float32 operands).
    """
    values = x.astype(np.float64)
    exponent = exponent_of(np.abs(values).max(-1), slices)
    q = np.rint(np.ldexp(values, 8 * slices - 1 - exponent[..., None])).astype(np.int32)
    return Window(q, exponent, slices)


def split(q: NDArray[np.integer], slices: int = 2) -> list[NDArray[np.int8]]:
    """int8 slices of windows, highest first: ``q = sum(slice_i * 256^(slices - 1 - i))``, each in [-128, 127]."""
    rest = q.astype(np.int32)
    low_first = []
    for _ in range(slices - 1):
        low = ((rest + 128) & 255) - 128
        low_first.append(low.astype(np.int8))
        rest = (rest - low) >> 8
    return [rest.astype(np.int8), *low_first[::-1]]


def chunk_length(length: int, slices_a: int = 2, slices_b: int = 2) -> int:
    """Elements under one window exponent in a contraction of ``length``.

    The whole contraction where every class of slice products with the same weight then sums to below 2^24 (256 elements
    for three slices on both sides, 512 otherwise), else chunks of 128.
    """
    whole = 256 if slices_a == slices_b == 3 else 512
    return length if length <= whole else CHUNK


def scale_by_power_of_two(x: NDArray[np.float32], exponent: NDArray[np.int32]) -> NDArray[np.float32]:
    """``x * 2^exponent`` for integer-valued-by-scale ``x``; +0 where the result is below 2^-100."""
    result_exponent = np.frexp(x)[1] - 1 + exponent
    small = (x == 0) | (result_exponent < SMALLEST_RESULT_EXPONENT)
    with np.errstate(over="ignore"):
        return np.where(small, np.float32(0), np.ldexp(x, np.where(small, 0, exponent)).astype(np.float32))


def ranks_of(slices_a: int, slices_b: int) -> int:
    """Different weights of slice products."""
    return slices_a + slices_b - 1


def unit_of(slices_a: int, slices_b: int, ranks: int) -> int:
    """-log2 of the lowest of ``ranks`` weights under exponents 0: 30 for two slices each, for three with 3 ranks."""
    return (8 * slices_a - 1) + (8 * slices_b - 1) - 8 * (ranks_of(slices_a, slices_b) - ranks)


def sliced_dot(a: Window, b: Window, *, ranks: int | None = None) -> NDArray[np.float32]:
    """float32 [M, N] of one chunk: ``a`` windows [M, L], ``b`` windows [N, L].

    Slice products of equal weight are summed exactly; the sums are joined from the highest weight down, one float32
    addition each, and scaled by a power of two: ``((hh * 65536 + hl * 256) + ll) * 2^(ea + eb - 30)`` for two slices.

    Args:
        a, b: from :func:`window`.
        ranks: how many weights are kept, from the highest down; None keeps all. 3 of three slices against three are
            ``((hh * 65536 + (hm + mh) * 256) + (hl + mm + lh)) * 2^(ea + eb - 30)``.

    Raises:
        ValueError: L is so long that a sum might pass 2^24.
    """
    length = a.q.shape[-1]
    ranks = ranks_of(a.slices, b.slices) if ranks is None else ranks
    sums = [np.zeros((a.q.shape[0], b.q.shape[0]), np.float64) for _ in range(ranks)]
    bounds = [0] * ranks
    for i, slice_a in enumerate(split(a.q, a.slices)):
        for j, slice_b in enumerate(split(b.q, b.slices)[: ranks - i]):
            sums[i + j] += slice_a.astype(np.float64) @ slice_b.astype(np.float64).T
            bounds[i + j] += length * (127 if i == 0 else 128) * (127 if j == 0 else 128)
    if max(bounds) > _EXACT_FLOAT32:
        raise ValueError(f"chunks of {length} elements do not fit 24 bits; see chunk_length()")
    total = np.zeros_like(sums[0], np.float32)
    for rank, exact in enumerate(sums):
        total = total + exact.astype(np.float32) * np.float32(256 ** (ranks - 1 - rank))
    unit = unit_of(a.slices, b.slices, ranks)
    return scale_by_power_of_two(total, a.exponent[:, None] + b.exponent[None, :] - unit)


def dot(a: NDArray[np.float32], b: NDArray[np.float32], slices_a: int = 2, slices_b: int = 2) -> NDArray[np.float32]:
    """Pinned ``a @ b.T`` (float32 [M, N]) of finite rows [M, K], [N, K]: chunks of windows, added ascending from +0."""
    length = a.shape[-1]
    step = chunk_length(length, slices_a, slices_b)
    total = np.zeros((a.shape[0], b.shape[0]), np.float32)
    for start in range(0, length, step):
        chunk = np.s_[:, start : start + step]
        total = total + sliced_dot(window(a[chunk], slices_a), window(b[chunk], slices_b))
    return total
