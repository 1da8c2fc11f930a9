"""The mixture of experts: rows are written once and stay inside their arrays, and nothing in it is subnormal.

Offsets, counts and tiles are integers of any size; float bounds are on real values, which carries over to float32
because rounding is monotone and the bounds are powers of two.
"""

from __future__ import annotations

import z3

from . import Theorem, prove_all

LOWEST_READ = -50
"""Exponent of the smallest magnitude that is read."""

LOWEST_NORMAL = -126


def _power(exponent: int) -> z3.RatNumRef:
    return z3.RatVal(2**exponent, 1) if exponent >= 0 else z3.RatVal(1, 2**-exponent)


def _placement() -> list[Theorem]:
    """``row = start[e] + before[c, e] + rank`` with rank the number of earlier pairs of e in chunk c."""
    start, other_start, total, other_total = z3.Ints("start other_start total other_total")
    before, other_before, here, there = z3.Ints("before other_before here there")
    rank, other_rank, rows = z3.Ints("rank other_rank rows")
    row, other = start + before + rank, other_start + other_before + other_rank
    one = [rank >= 0, rank < here, before >= 0, before + here <= total, start >= 0, start + total <= rows]
    two = [
        other_rank >= 0,
        other_rank < there,
        other_before >= 0,
        other_before + there <= other_total,
        other_start + other_total <= rows,
    ]
    return [
        Theorem("plan_row_in_range", "a pair's row lies in [0, T * k)", one, z3.And(row >= 0, row < rows)),
        Theorem(
            "plan_experts_apart",
            "pairs of different experts have different rows, in order of expert",
            [*one, *two, other_start >= start + total],
            row < other,
        ),
        Theorem(
            "plan_chunks_apart",
            "pairs of one expert in different chunks have different rows, in order of chunk",
            [*one, *two, other_start == start, other_before >= before + here],
            row < other,
        ),
        Theorem(
            "plan_tail_apart",
            "a row that no pair has, from offsets[E] on, is written by nothing else",
            [*one, other >= start + total, other >= rows],
            row < other,
        ),
    ]


def _tiles() -> list[Theorem]:
    """Row tiles of groups that round up to whole tiles."""
    rows, tiles, groups, size, more, new, index, block_row = z3.Ints("rows tiles groups size more new index block_row")
    ceil = [size >= 1, more >= 0, size * new >= more, size * new <= more + size - 1]
    bound = size * tiles <= rows + groups * (size - 1)
    return [
        Theorem(
            "tiles_suffice_step",
            "if g groups of r rows in all take at most (r + g * (size - 1)) / size tiles, so do g + 1",
            [*ceil, bound, rows >= 0, groups >= 0],
            size * (tiles + new) <= rows + more + (groups + 1) * (size - 1),
        ),
        Theorem(
            "tiles_suffice",
            "ceildiv(rows, size) + groups tiles are enough",
            [size >= 1, rows >= 0, groups >= 0, bound, size * new >= rows],
            size * tiles <= size * (new + groups),
        ),
        Theorem(
            "tile_row_in_group",
            "row i < min(size, count - index * size) of tile `index` of a group is one of the group's rows",
            [size >= 1, more >= 1, index >= 0, block_row >= 0, block_row < size, block_row < more - index * size],
            z3.And(index * size + block_row >= 0, index * size + block_row < more),
        ),
    ]


def _magnitudes() -> list[Theorem]:
    x, y = z3.Reals("x y")
    read = _power(LOWEST_READ)
    quantum = _power(LOWEST_READ - 23)
    a, b = z3.Ints("a b")
    total = z3.ToReal(a) * quantum + z3.ToReal(b) * quantum
    return [
        Theorem(
            "product_is_normal",
            "the product of two magnitudes that are read is at least 2^-100",
            [x >= read, y >= read],
            z3.And(x * y >= _power(2 * LOWEST_READ), x * y >= _power(LOWEST_NORMAL)),
        ),
        Theorem(
            "sum_is_normal",
            "a sum of multiples of 2^-73, as float32 values that are read are, is 0 or at least 2^-73",
            [a + b != 0],
            z3.Or(total >= _power(LOWEST_NORMAL), total <= -_power(LOWEST_NORMAL)),
        ),
    ]


def theorems() -> list[Theorem]:
    """Placement, tiles and magnitudes."""
    return [*_placement(), *_tiles(), *_magnitudes()]


if __name__ == "__main__":
    prove_all(theorems())
