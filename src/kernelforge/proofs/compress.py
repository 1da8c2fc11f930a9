"""Compression's sums and products stay away from subnormals and from what the Newton iterations do not cover.

With ``sliced_dot``: a product of read values is at least 2^-100 and sums stay on the grid of 2^-123 (contract C1).
"""

from __future__ import annotations

import z3

from . import Theorem, prove_all

SLOTS = 2048
"""Most slots of an entry: two series of 1024."""
LOWEST_WEIGHT = -50
SMALLEST_READ = -50
SMALLEST_EPS = -22
LARGEST_D = 2**20
SMALLEST_NORMAL = -126
RELATIVE = z3.Q(1, 2**23)
"""Bound on the relative error of a chain of roundings of one element."""


def _power(exponent: int) -> z3.ArithRef:
    return z3.RealVal(2) ** exponent if exponent >= 0 else z3.Q(1, 2**-exponent)


def _softmax() -> list[Theorem]:
    total, heaviest, rest, share, mean, error = z3.Reals("total heaviest rest share mean error")
    near = z3.And(error >= -z3.Q(1, 2**10), error <= z3.Q(1, 2**10))
    weights = [heaviest == 1, rest >= 0, rest <= (SLOTS - 1) * (1 + RELATIVE), near]
    position, scaled = z3.Ints("position scaled")
    return [
        Theorem(
            "weight_exponent",
            "the power of two of a weight that is not 0, 2^-50 to 1, has the exponent field of a normal number",
            [scaled >= LOWEST_WEIGHT, scaled <= 0, position == 127 + scaled],
            z3.And(position >= 1, position <= 254),
        ),
        Theorem(
            "sum_of_weights",
            f"the weights of up to {SLOTS} slots, the heaviest 1, sum to at least 1/2 and less than 2^12",
            [*weights, total == (heaviest + rest) * (1 + error)],
            z3.And(total >= z3.Q(1, 2), total < _power(12)),
        ),
        Theorem(
            "share_of_weights",
            "one over that sum is a normal number of at least 2^-12",
            [total >= z3.Q(1, 2), total < _power(12), share * total == 1],
            z3.And(share > _power(-12), share <= 2),
        ),
        Theorem(
            "mean_of_slots",
            "a sum of terms as it is read, times that share, is normal",
            [mean >= _power(SMALLEST_READ), share > _power(-12)],
            mean * share >= _power(SMALLEST_NORMAL),
        ),
    ]


def _norm() -> list[Theorem]:
    square, width, inverse, mean, eps, root = z3.Reals("square width inverse mean eps root")
    extent = [width >= 32, width <= LARGEST_D]
    return [
        Theorem(
            "mean_square",
            "the sum of squares of read values, over the width, is 0 or normal",
            [square >= _power(2 * SMALLEST_READ), *extent],
            square / width >= _power(SMALLEST_NORMAL),
        ),
        Theorem(
            "rsqrt_argument",
            "with eps of at least 2^-22 the root is taken of no less, so its inverse is at most 2^11",
            [square >= 0, eps >= _power(SMALLEST_EPS), *extent, root > 0, root * root == square / width + eps],
            root >= _power(SMALLEST_EPS // 2),
        ),
        Theorem(
            "normalized_mean",
            "a read mean times the inverse of a finite root, below 2^64, is normal",
            [mean >= _power(SMALLEST_READ), inverse > _power(-65)],
            mean * inverse >= _power(SMALLEST_NORMAL),
        ),
    ]


def theorems() -> list[Theorem]:
    """Weights, their sum and share, the mean, its normalization."""
    return [*_softmax(), *_norm()]


if __name__ == "__main__":
    prove_all(theorems())
