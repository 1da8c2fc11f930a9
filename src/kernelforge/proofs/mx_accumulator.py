"""MX block accumulation never leaves what fp32 holds exactly, and never meets a subnormal (contract C1 to C4).

The float theorems use z3's IEEE binary32. Powers of two are written by their bits (``exponent + 127`` above a zero
fraction), so that the solver's multiplications stay easy.
"""

from __future__ import annotations

import z3

from . import Theorem, prove_all

WINDOW_LIMIT = 32639
WEIGHT_LIMIT = 12
BLOCK = 32
LOWEST_READ, HIGHEST_READ = -50, 63
E4M3_WINDOW = (-8, 9)
"""Exponents of windows of E4M3 blocks: amax is in [2^-9, 448]."""
BF16_WINDOW = (-49, 129)
"""Exponents of windows of BF16 blocks: amax is in [2^-50, 2^128)."""

_FLOAT = z3.Float32()
_RNE = z3.RNE()


def _power(exponent: z3.BitVecRef) -> z3.FPRef:
    """2^exponent as a float, for a 32-bit exponent in [-126, 127]."""
    return z3.fpBVToFP((exponent + 127) << 23, _FLOAT)


def _value(exponent: int) -> z3.FPRef:
    return z3.FPVal(2.0**exponent, _FLOAT)


def _between(low: int, x: z3.BitVecRef, high: int) -> z3.BoolRef:
    return z3.And(x >= low, x <= high)


def _magnitude_between(low: int, x: z3.FPRef, high: int) -> z3.BoolRef:
    return z3.And(z3.fpGEQ(z3.fpAbs(x), _value(low)), z3.fpLEQ(z3.fpAbs(x), _value(high)))


def _finite(bits: z3.BitVecRef) -> z3.BoolRef:
    return z3.Extract(30, 23, bits) != 255


def _on_grid(bits: z3.BitVecRef) -> z3.BoolRef:
    """The float with these bits is a finite multiple of 2^-124 (and so no subnormal).

    A float with exponent field f is a multiple of 2^(f - 150); below f = 26 its last 26 - f fraction bits must be 0.
    """
    field = (bits >> 23) & 0xFF
    fraction = bits & 0x7FFFFF
    dropped = z3.If(field < 26, fraction & ((z3.BitVecVal(1, 32) << (26 - field)) - 1), 0)
    return z3.And(_finite(bits), z3.Or(bits << 1 == 0, z3.And(field >= 3, dropped == 0)))


def _integers() -> list[Theorem]:
    q, w = z3.Ints("q w")
    product_limit = WINDOW_LIMIT * WEIGHT_LIMIT
    products = z3.Ints(" ".join(f"product{i}" for i in range(BLOCK)))
    total = z3.Sum(products)
    window = z3.BitVec("window", 32)
    high = (window + 128) >> 8
    low = window - (high << 8)
    return [
        Theorem(
            "product_bound",
            f"|q| <= {WINDOW_LIMIT} and |w| <= {WEIGHT_LIMIT} give |q * w| <= {product_limit}",
            [q >= -WINDOW_LIMIT, q <= WINDOW_LIMIT, w >= -WEIGHT_LIMIT, w <= WEIGHT_LIMIT],
            z3.And(q * w <= product_limit, q * w >= -product_limit),
        ),
        Theorem(
            "block_bound",
            f"any of a block's {BLOCK} products (0 for those left out) sum to less than 2^24, so every order is exact",
            [z3.And(p >= -product_limit, p <= product_limit) for p in products],
            z3.And(total < 2**24, total > -(2**24)),
        ),
        Theorem(
            "slices",
            "a window is 256 * high + low, high in [-127, 127], low in [-128, 127]",
            [_between(-WINDOW_LIMIT, window, WINDOW_LIMIT)],
            z3.And(window == high * 256 + low, _between(-127, high, 127), _between(-128, low, 127)),
        ),
    ]


def _windows() -> list[Theorem]:
    """A float's significand in [2^23, 2^24) stands for amax; its window is the significand over 2^9."""
    significand, places, small = z3.BitVecs("significand places small", 32)

    def rounded(x: z3.BitVecRef, n: z3.BitVecRef) -> z3.BitVecRef:
        half = z3.BitVecVal(1, 32) << (n - 1)
        return z3.LShR(x + half - 1 + (z3.LShR(x, n) & 1), n)

    nine, ten, eight = (z3.BitVecVal(n, 32) for n in (9, 10, 8))
    is_significand = z3.And(z3.UGE(significand, 1 << 23), z3.ULT(significand, 1 << 24))
    overflows = z3.UGT(rounded(significand, nine), WINDOW_LIMIT)
    return [
        Theorem(
            "window_exponent",
            "the window exponent is floor(log2(amax)) + 1, or + 2 where rounding would pass the limit",
            [is_significand],
            z3.And(
                z3.ULE(rounded(significand, ten), WINDOW_LIMIT),
                z3.UGT(rounded(significand, eight), WINDOW_LIMIT),
            ),
        ),
        Theorem(
            "window_carry",
            "eight significant bits take the larger exponent only where all of them are set",
            [is_significand, significand & 0xFFFF == 0],
            overflows == (significand == 0xFF0000),
        ),
        Theorem(
            "window_is_bf16",
            "windows of values with eight significant bits have eight at most, so they are bfloat16 numbers",
            [z3.ULT(small, 256), z3.UGE(places, 1), z3.ULE(places, 30)],
            z3.ULE(rounded(small, places), 256),
        ),
    ]


def _factors() -> list[Theorem]:
    fa, fw, e, i = z3.BitVecs("fa fw e i", 32)
    scale = z3.FP("scale", _FLOAT)
    window_factor = _power(e - 16)
    return [
        Theorem(
            "factor_e8m0",
            "2^(e - 16) times an E8M0 scale is exact and normal for every E4M3 block",
            [_between(*_bounds(E4M3_WINDOW, e)), _between(LOWEST_READ, fw, HIGHEST_READ)],
            z3.fpEQ(z3.fpMul(_RNE, window_factor, _power(fw)), _power(e - 16 + fw)),
        ),
        Theorem(
            "factor_f32",
            "2^(e - 16) times a float32 scale of at least 2^-50 is exact and normal for every E4M3 block",
            [
                _between(*_bounds(E4M3_WINDOW, e)),
                z3.Not(z3.fpIsNaN(scale)),
                z3.Not(z3.fpIsInf(scale)),
                z3.fpGEQ(z3.fpAbs(scale), _value(LOWEST_READ)),
            ],
            z3.And(
                z3.fpIsNormal(z3.fpMul(_RNE, scale, window_factor)),
                z3.fpEQ(z3.fpMul(_RNE, z3.fpMul(_RNE, scale, window_factor), _power(16 - e)), scale),
            ),
        ),
        Theorem(
            "scale_product",
            "the product of two power-of-two factors is exact and at least 2^-124",
            [_between(-74, fa, HIGHEST_READ), _between(LOWEST_READ, fw, HIGHEST_READ)],
            z3.And(
                z3.fpEQ(z3.fpMul(_RNE, _power(fa), _power(fw)), _power(fa + fw)),
                z3.fpGEQ(_power(fa + fw), _value(-124)),
            ),
        ),
        Theorem(
            "scale_product_f32",
            "a float32 factor in [2^-50, 2^63] times an E8M0 scale is exact and at least 2^-100",
            [_magnitude_between(LOWEST_READ, scale, HIGHEST_READ), _between(LOWEST_READ, i, HIGHEST_READ)],
            z3.And(
                z3.fpGEQ(z3.fpAbs(z3.fpMul(_RNE, scale, _power(i))), _value(-100)),
                z3.fpEQ(z3.fpMul(_RNE, z3.fpMul(_RNE, scale, _power(i)), _power(-i)), scale),
            ),
        ),
    ]


def _bounds(limits: tuple[int, int], x: z3.BitVecRef) -> tuple[int, z3.BitVecRef, int]:
    return limits[0], x, limits[1]


def _sums() -> list[Theorem]:
    integer, exponent, acc, term = z3.BitVecs("integer exponent acc term", 32)
    factor = z3.FP("factor", _FLOAT)
    as_float = z3.fpToFP(_RNE, integer, _FLOAT)
    is_block_integer = z3.And(_between(-(2**24) + 1, integer, 2**24 - 1), integer != 0)
    exact_term = z3.fpMul(_RNE, as_float, _power(exponent))
    rounded_term = z3.fpMul(_RNE, as_float, factor)
    total = z3.fpAdd(_RNE, z3.fpBVToFP(acc, _FLOAT), z3.fpBVToFP(term, _FLOAT))
    return [
        Theorem(
            "term_on_grid",
            "a block integer times a power of two from 2^-124 is a nonzero multiple of 2^-124, or overflows",
            [is_block_integer, _between(-124, exponent, 126)],
            z3.Or(z3.fpIsInf(exact_term), z3.And(z3.fpIsNormal(exact_term), _on_grid(z3.fpToIEEEBV(exact_term)))),
        ),
        Theorem(
            "term_exact",
            "it is exact while the power of two is at most 2^104: a fused multiply-add then rounds like the two steps",
            [is_block_integer, _between(-124, exponent, 104)],
            z3.fpToIEEEBV(exact_term) == z3.fpToIEEEBV(as_float) + (exponent << 23),
        ),
        Theorem(
            "term_f32",
            "a block integer times a float32 factor of at least 2^-100 is a nonzero multiple of 2^-124, or overflows",
            [is_block_integer, z3.fpGEQ(z3.fpAbs(factor), _value(-100))],
            z3.Or(
                z3.fpIsInf(rounded_term),
                z3.And(z3.fpIsNormal(rounded_term), _on_grid(z3.fpToIEEEBV(rounded_term))),
            ),
        ),
        Theorem(
            "sum_on_grid",
            "the sum of two multiples of 2^-124 is one, and so 0 or normal, or overflows",
            [_on_grid(acc), _on_grid(term)],
            z3.Or(z3.fpIsInf(total), _on_grid(z3.fpToIEEEBV(total))),
        ),
    ]


def theorems() -> list[Theorem]:
    """Integer bounds, windows, factors, terms and sums."""
    return [*_integers(), *_windows(), *_factors(), *_sums()]


if __name__ == "__main__":
    prove_all(theorems())
