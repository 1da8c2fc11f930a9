"""Sliced dots and hyper-connections stay within what fp32 holds exactly; no subnormal occurs (contract C1, C4)."""

from __future__ import annotations

import z3

from . import Theorem, prove_all

EXACT = 2**24
WHOLE_ROWS = {(2, 2): 512, (2, 3): 512, (3, 3): 256}
"""Longest row under one exponent, by the numbers of slices."""
EXPONENTS = (-49, 129)
"""Of windows: amax is in [2^-50, 2^128)."""
SMALLEST_READ, SMALLEST_EPS = -50, -20

UNITS = {(2, 2, 3): 30, (3, 3, 5): 46, (3, 3, 3): 30}
"""-log2 of the lowest weight under exponents 0, by the numbers of slices and of ranks that are kept."""

_FLOAT = z3.Float32()


def _slice_limit(index: int) -> int:
    """Largest magnitude of a slice: the highest lies in [-127, 127], the others in [-128, 127]."""
    return 127 if index == 0 else 128


def _classes() -> list[Theorem]:
    found = []
    for (a, b), length in WHOLE_ROWS.items():
        for rank in range(a + b - 1):
            pairs = [(i, rank - i) for i in range(a) if 0 <= rank - i < b]
            sums = z3.Ints(" ".join(f"sum{i}" for i, _ in pairs) + " unused")[: len(pairs)]
            limits = [length * _slice_limit(i) * _slice_limit(j) for i, j in pairs]
            total = z3.Sum(sums)
            found.append(
                Theorem(
                    f"class_{a}x{b}_{rank}",
                    f"slice products of rank {rank} over {length} elements sum to less than 2^24",
                    [z3.And(s <= limit, s >= -limit) for s, limit in zip(sums, limits, strict=True)],
                    z3.And(total < EXACT, total > -EXACT),
                )
            )
    return found


def _scaling() -> list[Theorem]:
    bits, a, b = z3.BitVecs("bits a b", 32)
    found = []
    for (slices, _, ranks), unit in UNITS.items():
        places = a + b - unit
        magnitude = bits & 0x7FFFFFFF
        field = (magnitude >> 23) + places
        moved = bits + (places << 23)
        premises = [
            *(z3.And(e >= EXPONENTS[0], e <= EXPONENTS[1]) for e in (a, b)),
            # A joined total is an integer: 0, or from 1 to below 2^48.
            (magnitude >> 23) >= 127,
            (magnitude >> 23) < 127 + 48,
        ]
        inside = z3.And(field >= 27, field <= 254)
        found.append(
            Theorem(
                f"scaling_{slices}_{ranks}",
                f"moving the exponent of a total of {slices} slices, {ranks} ranks multiplies it by the power of two",
                premises,
                z3.Implies(
                    inside,
                    z3.And((moved & 0x7FFFFFFF) >> 23 == field, (moved ^ bits) & z3.BitVecVal(0x807FFFFF, 32) == 0),
                ),
            )
        )
    return found


def _left_out() -> list[Theorem]:
    """Of three slices against three, the products of the two lowest weights: 2^-38 and 2^-46 under exponents 0."""
    ml, lm, ll = z3.Ints("ml lm ll")
    limit = 128 * 128
    total = 256 * (ml + lm) + ll
    return [
        Theorem(
            "left_out",
            "what three ranks of a product of two windows of three slices leave out is below 2^-22 under exponents 0, "
            "where windows go up to 1",
            [z3.And(p <= limit, p >= -limit) for p in (ml, lm, ll)],
            z3.And(total < 2 ** (46 - 22), total > -(2 ** (46 - 22))),
        )
    ]


def _products() -> list[Theorem]:
    a, b, k, x, y, f, entry = z3.Reals("a b k x y f entry")
    least = z3.RealVal(2) ** SMALLEST_READ
    bits = z3.BitVec("bits", 32)
    field = (bits >> 23) & 0xFF
    left, right = z3.BitVecs("left right", 32)
    total = z3.fpAdd(z3.RNE(), z3.fpBVToFP(left, _FLOAT), z3.fpBVToFP(right, _FLOAT))
    return [
        Theorem(
            "product_of_read_values",
            "the product of two values of at least 2^-50 is at least 2^-100, a float, so its rounding is too",
            [a >= least, b >= least],
            a * b >= least * least,
        ),
        Theorem(
            "grid_of_products",
            "a finite float of at least 2^-100 is a multiple of 2^-123",
            [field >= 27, field < 255],
            _on_grid(bits),
        ),
        Theorem(
            "sum_on_grid",
            "the sum of two multiples of 2^-123 is one, and so 0 or normal, or overflows",
            [_on_grid(left), _on_grid(right)],
            z3.Or(z3.fpIsInf(total), _on_grid(z3.fpToIEEEBV(total))),
        ),
        Theorem(
            "cross_ratio",
            "dividing rows and columns leaves m[i,j] m[k,l] / (m[i,l] m[k,j]) as it is",
            [a > 0, b > 0, x > 0, y > 0, f > 0, k > 0, entry > 0],
            (a * f) * (y * k) * (x * b) == (x * f) * (b * k) * (a * y),
        ),
        Theorem(
            "smallest_entry",
            "with cross ratios of at least eps^2, an entry m[i,l] >= 1/8 of the row and m[k,j] >= 1/64 of the column, "
            "and m[k,l] <= 1, the entry m[i,j] is at least 2^-49",
            [
                x >= z3.Q(1, 8),
                y >= z3.Q(1, 64),
                f > 0,
                f <= 1,
                entry * f >= (z3.RealVal(2) ** (2 * SMALLEST_EPS)) * x * y,
            ],
            entry >= z3.RealVal(2) ** (2 * SMALLEST_EPS - 9),
        ),
    ]


def _on_grid(bits: z3.BitVecRef) -> z3.BoolRef:
    """The float with these bits is a finite multiple of 2^-123."""
    field = (bits >> 23) & 0xFF
    fraction = bits & 0x7FFFFF
    dropped = z3.If(field < 27, fraction & ((z3.BitVecVal(1, 32) << (27 - field)) - 1), 0)
    return z3.And(field != 255, z3.Or(bits << 1 == 0, z3.And(field >= 4, dropped == 0)))


def theorems() -> list[Theorem]:
    """Sums of slice products, their scaling, products of values as read, entries of Sinkhorn's iterates."""
    return [*_classes(), *_scaling(), *_left_out(), *_products()]


if __name__ == "__main__":
    prove_all(theorems())
