"""MX blocks on bfloat16 matrix units whose operands carry their scales (``mx_block.h`` of the CUDA backend).

Activations are multiplied by their scale and 2^SHIFT, weights by theirs and 2^-SHIFT. Operands then are bfloat16
numbers, and a block's products and their sums are floats and multiples of one unit, below 2^24 units. What a scale
cannot give to the operands is multiplied in afterwards ("beside").
"""

from __future__ import annotations

from typing import NamedTuple

import z3

from . import Theorem, prove_all
from .mx_accumulator import BF16_WINDOW, BLOCK, E4M3_WINDOW, HIGHEST_READ, LOWEST_READ, WEIGHT_LIMIT, WINDOW_LIMIT

SHIFT = 20
WEIGHT_EXPONENT = 126
"""Decoded weights are 2^-126 times the value: their bits lie where a bfloat16 has the last two of its exponent."""
FOLDED_WEIGHT = 21
"""Exponent of the largest scale that joins weights."""
LOWERED = 30
"""Blocks of bfloat16 activations whose factor reads as infinite are divided by 2^LOWERED, to stay finite."""
ACCUMULATOR_BITS = (24, 25)
"""Bits that tensor cores keep below the largest addend's first: on compute capability 8.x, and on later ones."""

BIAS = 127
LEAST_NORMAL, BEYOND = -126, 128


class Block(NamedTuple):
    """Activations of a kind, as exponents of two: elements are multiples of ``least`` below ``top``; with ``top`` at
    its largest, windows are integers in units of ``unit``."""

    least: int
    top: int
    unit: int
    scale: tuple[int, int]


BLOCKS = {
    "e2m1": Block(-1, 3, -1, (LOWEST_READ, HIGHEST_READ)),
    "e4m3": Block(-9, E4M3_WINDOW[1], E4M3_WINDOW[1] - 15, (LOWEST_READ, HIGHEST_READ)),
    # Numbers of at least 2^-50 with eight significant bits; a factor of 2^(e - 16) up to 2^63 is finite.
    "bf16": Block(LOWEST_READ - 7, HIGHEST_READ + 16, HIGHEST_READ + 1, (0, 0)),
    "bf16_infinite": Block(HIGHEST_READ + 2, BF16_WINDOW[1], BF16_WINDOW[1] - 15, (-LOWERED, -LOWERED)),
}
WEIGHTS = Block(-1, 3, -1, (LOWEST_READ, FOLDED_WEIGHT))


def _operands() -> list[Theorem]:
    scale = z3.Int("scale")
    return [
        Theorem(
            f"operand_{name}",
            f"{name} times their scale and 2^{shift} are normal bfloat16 numbers or 0, so multiplying is exact",
            [scale >= block.scale[0], scale <= block.scale[1]],
            z3.And(block.least + scale + shift >= LEAST_NORMAL, block.top + scale + shift <= BEYOND),
        )
        for name, block, shift in (*((n, b, SHIFT) for n, b in BLOCKS.items()), ("weights", WEIGHTS, -SHIFT))
    ]


def _products() -> list[Theorem]:
    a, w = z3.Ints("a w")
    return [
        Theorem(
            f"sums_{name}",
            f"products of {name} are multiples of a normal power of two, and sums below 2^24 units are below 2^128",
            [a >= block.scale[0], a <= block.scale[1], w >= WEIGHTS.scale[0], w <= WEIGHTS.scale[1]],
            z3.And(
                block.least + WEIGHTS.least + a + w >= LEAST_NORMAL,
                24 + block.unit + WEIGHTS.unit + a + w <= BEYOND,
            ),
        )
        for name, block in BLOCKS.items()
    ]


def _accumulator() -> list[Theorem]:
    """In units: whatever part of a block has been added, no addend's last bit lies below what is kept."""
    products = z3.Ints(" ".join(f"product{i}" for i in range(BLOCK)))
    place = z3.Int("place")
    limit = WINDOW_LIMIT * WEIGHT_LIMIT
    total = z3.Sum(products)
    # A number below 2^(place + 1) is the largest addend; bits from 2^(place - bits + 1) on are kept.
    reaches = z3.Or([z3.And(place == k, z3.Or(total >= 2**k, total <= -(2**k))) for k in range(64)])
    return [
        Theorem(
            f"accumulator_{bits}",
            f"an accumulator of {bits} bits keeps the unit beside any partial sum of a block",
            [*(z3.And(p >= -limit, p <= limit) for p in products), reaches],
            place - bits + 1 <= 0,
        )
        for bits in ACCUMULATOR_BITS
    ]


def _factors() -> list[Theorem]:
    """``read_scale``: exponent fields of the factor inside operands, 2^raised times too large, and of that beside."""
    byte = z3.Int("byte")
    lowest, highest = LOWEST_READ + BIAS, HIGHEST_READ + BIAS
    found = []
    for name, raised, folded in (
        ("activations", SHIFT, HIGHEST_READ),
        ("weights", WEIGHT_EXPONENT - SHIFT, FOLDED_WEIGHT),
    ):
        fits = byte <= folded + BIAS
        inside = z3.If(byte < lowest, 0, z3.If(fits, byte, BIAS) + raised)
        beside = z3.If(fits, BIAS, z3.If(byte > highest, 255, byte))
        usual = z3.And(byte >= lowest, byte <= highest)
        found.append(
            Theorem(
                f"factor_{name}",
                f"of {name}: the two factors make the scale as it is read, and the one inside is a bfloat16 number",
                [byte >= 0, byte <= 255],
                z3.And(
                    z3.And(inside >= 0, inside <= 254),
                    (beside == 255) == (byte > highest),
                    z3.Implies(byte < lowest, z3.And(inside == 0, beside == BIAS)),
                    z3.Implies(usual, inside - raised + beside - BIAS == byte),
                ),
            )
        )
    return found


def _rounding() -> list[Theorem]:
    sort, mode = z3.FPSort(8, 8), z3.RNE()
    x = z3.FP("x", sort)
    units = z3.FPVal(128.0, sort)
    return [
        Theorem(
            "rounding",
            "adding 128 units and taking them away again rounds a bfloat16 number below 128 units to whole ones",
            [z3.fpGEQ(x, z3.FPVal(0.0, sort)), z3.fpLT(x, units)],
            z3.fpEQ(z3.fpSub(mode, z3.fpAdd(mode, x, units), units), z3.fpRoundToIntegral(mode, x)),
        )
    ]


def theorems() -> list[Theorem]:
    """Operands, products and sums, the accumulator, factors of scales, the rounding of windows."""
    return [*_operands(), *_products(), *_accumulator(), *_factors(), *_rounding()]


if __name__ == "__main__":
    prove_all(theorems())
