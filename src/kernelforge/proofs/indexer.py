"""The lightning indexer's integers: folded elements and dots, the order of scores, ranks in one integer."""

from __future__ import annotations

import z3

from . import Theorem, prove_all

WEIGHT_LIMIT = 12
"""Largest magnitude of twice an E2M1 value."""

FOLD_BITS = 3
"""Binades by which scales of one row may differ to be folded into its elements."""

FOLDED_DEPTH = 1024
"""Longest row that is folded."""

NAN = 0x7FC0
"""The one bfloat16 NaN."""


def _key(bits: z3.BitVecRef) -> z3.BitVecRef:
    """What orders the bfloat16 with these 16 bits."""
    return z3.If(z3.UGE(bits, 0x8000), 0xFFFF - bits, bits + 0x8000)


def _packed(key: z3.BitVecRef, position: z3.BitVecRef) -> z3.BitVecRef:
    """Key and position as the sort of ranks compares them, 32 bits, signed."""
    return ((key - 0x8000) << 16) | (0xFFFF - position)


def _folding() -> list[Theorem]:
    w, shift = z3.BitVecs("w shift", 8)
    offset = WEIGHT_LIMIT << FOLD_BITS
    small = [w >= -WEIGHT_LIMIT, w <= WEIGHT_LIMIT, z3.ULE(shift, FOLD_BITS)]
    moved = (w + WEIGHT_LIMIT) << shift
    stored = moved + (offset - (z3.BitVecVal(WEIGHT_LIMIT, 8) << shift))
    wide = z3.SignExt(8, w) << z3.SignExt(8, shift)
    q, k = z3.Ints("q k")
    limit = WEIGHT_LIMIT << FOLD_BITS
    return [
        Theorem(
            "folded_element",
            "(w + 12) << s stays within its byte, and with what is missing to 96 it is (w << s) + 96",
            small,
            z3.And(
                z3.LShR(moved, shift) == w + WEIGHT_LIMIT,
                z3.ZeroExt(8, stored) == wide + offset,
            ),
        ),
        Theorem(
            "folded_query_element",
            "w << s is an int8",
            small,
            z3.And(wide >= -128, wide <= 127),
        ),
        Theorem(
            "folded_dot",
            "a dot of folded rows is below 2^24 in magnitude, so exact as a float in any order",
            [q >= -limit, q <= limit, k >= -limit, k <= limit],
            z3.And(FOLDED_DEPTH * q * k < 2**24, FOLDED_DEPTH * q * k > -(2**24)),
        ),
    ]


def _order() -> list[Theorem]:
    a, b = z3.BitVecs("a b", 16)
    value = z3.FPSort(8, 8)
    one, other = z3.fpBVToFP(a, value), z3.fpBVToFP(b, value)
    numbers = [z3.Not(z3.fpIsNaN(one)), z3.Not(z3.fpIsNaN(other)), a != 0x8000, b != 0x8000]
    key_a, key_b, at_a, at_b = z3.BitVecs("key_a key_b at_a at_b", 32)
    fields = [z3.And(z3.ULE(x, 0xFFFF)) for x in (key_a, key_b, at_a, at_b)]
    first, second = _packed(key_a, at_a), _packed(key_b, at_b)
    before = z3.Or(z3.UGT(key_a, key_b), z3.And(key_a == key_b, z3.ULT(at_a, at_b)))
    return [
        Theorem(
            "keys_order_scores",
            "keys compare as the bfloat16 numbers do",
            numbers,
            z3.fpLT(one, other) == z3.ULT(_key(a), _key(b)),
        ),
        Theorem(
            "nan_is_above_all",
            "the NaN's key is larger than any number's, and no score has key 0",
            numbers,
            z3.And(z3.UGT(_key(z3.BitVecVal(NAN, 16)), _key(a)), _key(a) != 0),
        ),
        Theorem(
            "ranks_in_one_integer",
            "packed ranks compare by larger key, then lower position; an entry's is above that of none",
            [*fields, key_a != 0],
            z3.And((first > second) == before, first > z3.BitVecVal(-(2**31), 32)),
        ),
    ]


def theorems() -> list[Theorem]:
    """Folding of scales into int8, and the integers that a selection compares."""
    return [*_folding(), *_order()]


if __name__ == "__main__":
    print(f"{prove_all(theorems())} theorems")
