"""When an E2M1 value times 2^d is an E4M3 value, for each of the seven magnitudes; and when a group converts exactly.

E4M3's positive values are m * 2^-9 with m = M (field 0) or (8 + M) * 2^(E - 1). An E2M1 magnitude is h / 2 with h in
{1, 2, 3, 4, 6, 8, 12}. So ``h / 2 * 2^d`` is an E4M3 value exactly if some code has ``m = h * 2^(d + 8)``.
"""

from __future__ import annotations

import z3

from . import Theorem, prove_all

MAGNITUDES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 12}
"""E2M1 code -> twice its value."""

LOWEST_SHIFT = {1: -8, 2: -9, 3: -8, 4: -10, 5: -9, 6: -11, 7: -10}
"""E2M1 code -> least d for which value * 2^d is an E4M3 value."""

HIGHEST_SHIFT = {1: 9, 2: 8, 3: 8, 4: 7, 5: 7, 6: 6, 7: 6}
"""E2M1 code -> largest such d."""

ANY_VALUE = (max(LOWEST_SHIFT.values()), min(HIGHEST_SHIFT.values()))
"""The shifts under which every E2M1 value is an E4M3 value."""

_WIDTH = 576
_LARGEST_SHIFT = 254
"""Scale exponents lie in [-127, 127], so no two differ by more."""


def _units(code: z3.BitVecRef) -> z3.BitVecRef:
    """Value of a 7-bit E4M3 code in units of 2^-9, ``_WIDTH`` bits wide."""
    field, mantissa = z3.Extract(6, 3, code), z3.Extract(2, 0, code)
    wide = z3.ZeroExt(_WIDTH - 3, mantissa)
    return z3.If(field == 0, wide, (wide | 8) << (z3.ZeroExt(_WIDTH - 4, field) - 1))


def _is_value(code: z3.BitVecRef, doubled: int, d: z3.BitVecRef) -> z3.BoolRef:
    """``doubled / 2 * 2^d`` is the value of ``code``; both sides times 2^(9 + _LARGEST_SHIFT), so all are integers."""
    left = z3.BitVecVal(doubled, _WIDTH) << (d + 8 + _LARGEST_SHIFT)
    return z3.And(code != 0x7F, left == _units(code) << _LARGEST_SHIFT)


def theorems() -> list[Theorem]:
    """Both directions of the threshold, for every magnitude, and what follows for groups of blocks."""
    code, d = z3.BitVec("code", 7), z3.BitVec("d", _WIDTH)
    in_range = z3.And(d >= -_LARGEST_SHIFT, d <= _LARGEST_SHIFT)
    found: list[Theorem] = []
    for magnitude, doubled in MAGNITUDES.items():
        lowest, highest = LOWEST_SHIFT[magnitude], HIGHEST_SHIFT[magnitude]
        found.append(
            Theorem(
                f"outside_{magnitude}",
                f"{doubled / 2} * 2^d is an E4M3 value only for {lowest} <= d <= {highest}",
                [in_range, _is_value(code, doubled, d)],
                z3.And(d >= lowest, d <= highest),
            )
        )
        codes = [z3.BitVecVal(c, 7) for c in range(0x7F)]
        found.append(
            Theorem(
                f"inside_{magnitude}",
                f"{doubled / 2} * 2^d is an E4M3 value for every {lowest} <= d <= {highest}",
                [d >= lowest, d <= highest],
                z3.Or([_is_value(c, doubled, d) for c in codes]),
            )
        )
    found.append(_groups())
    return found


def _groups() -> Theorem:
    """Two blocks that hold every value share a scale exactly if their exponents differ by at most 14.

    Each block leaves an interval for the scale; intervals that meet pairwise have a common point, so pairs decide.
    """
    s, t, g = z3.Ints("s t g")
    low, high = ANY_VALUE
    fits = z3.And(s - g >= low, s - g <= high, t - g >= low, t - g <= high)
    return Theorem(
        "groups",
        f"blocks of all values share a scale exactly if their exponents differ by at most {high - low}",
        [s >= t],
        z3.Exists([g], fits) == (s - t <= high - low),
    )


if __name__ == "__main__":
    prove_all(theorems())
