"""Attention's sums are exact, its weights fit int8 slices and its indices stay inside their tensors (contract C5)."""

from __future__ import annotations

import z3

from . import Theorem, prove_all

CHUNK = 128
WIDTH = 512
GROUP = 64
WEIGHT_ONE = 32512
WINDOW_LIMIT = 32639
HIGH, LOW = 127, 128
"""Largest magnitudes of high and low slices."""


def _exact_sums() -> list[Theorem]:
    def bound(name: str, statement: str, products: int, limit: int) -> Theorem:
        total, extreme = z3.Ints(f"{name}_sum {name}_extreme")
        # A sum of n terms within +-limit lies within +-n * limit, whatever their order and number up to n.
        return Theorem(
            name,
            statement,
            [extreme >= 0, extreme <= limit, total <= products * extreme, total >= -products * extreme],
            z3.And(total < 2**24, total > -(2**24)),
        )

    return [
        bound("score_high", f"{WIDTH} products of high slices sum to less than 2^24", WIDTH, HIGH * HIGH),
        bound("score_cross", f"2 * {WIDTH} products of unequal slices sum to less than 2^24", 2 * WIDTH, HIGH * LOW),
        bound("score_low", f"{WIDTH} products of low slices sum to less than 2^24", WIDTH, LOW * LOW),
        bound("value_cross", f"2 * {CHUNK} products of unequal slices sum to less than 2^24", 2 * CHUNK, HIGH * LOW),
        bound("head_high", f"{GROUP} products of high slices sum to less than 2^24", GROUP, HIGH * HIGH),
        bound("head_cross", f"2 * {GROUP} products of unequal slices sum to less than 2^24", 2 * GROUP, HIGH * LOW),
        bound("denominator", f"{CHUNK} weights sum to less than 2^24", CHUNK, WEIGHT_ONE),
    ]


def _slices() -> list[Theorem]:
    theorems = []
    for name, low, top in (("weight", 0, WEIGHT_ONE), ("window", -WINDOW_LIMIT, WINDOW_LIMIT)):
        q = z3.BitVec(name, 32)
        high = (q + 128) >> 8
        rest = q - (high << 8)
        theorems.append(
            Theorem(
                f"{name}_slices",
                f"integers from {low} to {top} are 256 * high + low, high in [-127, 127], low in [-128, 127]",
                [q >= low, q <= top],
                z3.And(q == high * 256 + rest, high >= -HIGH, high <= HIGH, rest >= -LOW, rest < LOW),
            )
        )
    return theorems


def _indices() -> list[Theorem]:
    """What ``find_chunk`` reads. T raw rows a batch row from position ``start`` on; pages of ``page`` entries."""
    batch, batches, rows, start, position, window, slot, lane = z3.Ints(
        "batch batches rows start position window slot lane"
    )
    larger = lambda a, b: z3.If(a > b, a, b)  # noqa: E731
    smaller = lambda a, b: z3.If(a < b, a, b)  # noqa: E731
    first = larger(larger(position - window + 1, start), 0)
    last = smaller(position + 1, start + rows)
    origin = (first / CHUNK + slot) * CHUNK
    at = origin + lane
    seen = [batch >= 0, batch < batches, rows >= 0, window >= 1, lane >= 0, lane < CHUNK, first <= at, at < last]
    row = batch * rows + at - start
    index, entries, pages, page, entry = z3.Ints("index entries pages page entry")
    slots = (window + CHUNK - 2) / CHUNK + 1
    return [
        Theorem(
            "raw_row",
            "a raw row that is read belongs to the query's batch row",
            [*seen, slot >= 0],
            z3.And(batch * rows <= row, row < batch * rows + rows),
        ),
        Theorem(
            "window_slots",
            f"a window lies in (window + {CHUNK - 2}) // {CHUNK} + 1 chunks from its first position's on",
            [window >= 1, entry >= first, entry < last],
            z3.And(entry / CHUNK >= first / CHUNK, entry / CHUNK < first / CHUNK + slots),
        ),
        Theorem(
            "page_of_entry",
            "an entry's page is one of the batch row's, its place one of the page's",
            [page >= 1, pages >= 0, entries == pages * page, index >= 0, index < entries],
            z3.And(index / page >= 0, index / page < pages, index % page >= 0, index % page < page),
        ),
    ]


def _windows() -> list[Theorem]:
    """Two-slice windows of float32 values, cut by the bits of the largest one (backward)."""
    bits = z3.BitVec("bits", 32)
    exponent = ((bits + 0x10100) >> 23) - 126
    significand = (bits & 0x7FFFFF) | 0x800000
    # bits = significand * 2^(field - 150), so x * 2^(15 - e) = significand * 2^-places.
    places = 135 + exponent - (bits >> 23)
    half = z3.BitVecVal(1, 32) << (places - 1)
    rounded = (significand + half - 1 + ((significand >> places) & 1)) >> places
    field = bits >> 23
    premises = [bits >= 27 << 23, bits < 255 << 23]
    return [
        Theorem(
            "float_window",
            f"a float32 of at least 2^-100 has a window within {WINDOW_LIMIT} under the exponent of its bits",
            premises,
            z3.And(places >= 9, places <= 10, rounded <= WINDOW_LIMIT),
        ),
        Theorem(
            "float_window_least",
            "and none under the exponent below",
            [*premises, exponent != field - 126],
            z3.LShR(significand + 255 + ((significand >> 9) & 1), 9) > WINDOW_LIMIT,
        ),
        Theorem(
            "float_window_unit",
            "the power of two that windows are multiplied by is a float32",
            premises,
            z3.And(15 - exponent >= -126, 15 - exponent <= 127),
        ),
    ]


def theorems() -> list[Theorem]:
    """Everything that is proved."""
    return [*_exact_sums(), *_slices(), *_windows(), *_indices()]


if __name__ == "__main__":
    prove_all(theorems())
