"""The whole chain - compress, index, select, attend, project - has the same bits however a sequence is fed."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

from kernelforge.longcontext.chain import PARTS, Layer, Piece, Shape

SMALL = dict(heads=4, D=64, rope=32, window=32, index_heads=4, index_channels=64, groups=2, rank=32, hidden=64)
SHAPES = {"csa": Shape("CSA", 4, 16, **SMALL), "hca": Shape("HCA", 8, 0, **SMALL)}
TOTAL = 180
"""45 entries of CSA, of which 16 are chosen; the window slides five times."""


@functools.cache
def made(kind: str) -> tuple[Layer, Piece]:
    layer = Layer(SHAPES[kind], TOTAL)
    return layer, layer.piece(2, TOTAL)


@functools.cache
def whole(kind: str, storage: str) -> torch.Tensor:
    layer, tokens = made(kind)
    return layer.feed(layer.cache(2, TOTAL, storage), tokens)


def random_cuts(seed: int) -> list[int]:
    return sorted(np.random.default_rng(seed).choice(np.arange(1, TOTAL), 9, replace=False).tolist())


CUTS = {
    "token by token": range(1, TOTAL),
    "primes": np.cumsum([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31]).tolist(),
    "random": random_cuts(0),
    "one alone, the rest": [1],
}


@pytest.mark.parametrize(
    ("cuts", "storage"), [*((cuts, "bfloat16") for cuts in CUTS), ("random", "float8_e4m3fn")], ids=str
)
@pytest.mark.parametrize("kind", SHAPES)
def test_bits_do_not_depend_on_how_the_sequence_is_fed(kind, cuts, storage):
    layer, tokens = made(kind)
    cache = layer.cache(2, TOTAL, storage)
    edges = [0, *CUTS[cuts], TOTAL]
    pieces = [layer.feed(cache, tokens.cut(a, b)) for a, b in itertools.pairwise(edges)]
    found = torch.cat(pieces, 1)
    assert torch.equal(found.view(torch.int16), whole(kind, storage).view(torch.int16))


@pytest.mark.parametrize("kind", SHAPES)
def test_sequences_of_a_batch_may_be_fed_differently(kind):
    """In pages, each sequence in random pieces of its own."""
    layer, tokens = made(kind)
    cache = layer.cache(2, TOTAL, page=5)
    draw = np.random.default_rng(1)
    found: list[list[torch.Tensor]] = [[], []]
    while min(cache.lengths) < TOTAL:
        at = cache.lengths
        lengths = [min(TOTAL - start, int(draw.integers(0, 40))) for start in at]
        S = max(lengths)
        rows = [
            [
                torch.nn.functional.pad(x[b, at[b] : at[b] + n], (0, 0) * (x.dim() - 2) + (0, S - n))
                for b, n in enumerate(lengths)
            ]
            for x in vars(tokens).values()
        ]
        out = layer.feed(cache, Piece(*map(torch.stack, rows)), torch.tensor(lengths, dtype=torch.int32))
        for b, n in enumerate(lengths):
            found[b].append(out[b, :n])
    for pieces, wanted in zip(found, whole(kind, "bfloat16"), strict=True):
        assert torch.equal(torch.cat(pieces).view(torch.int16), wanted.view(torch.int16))


def test_a_filled_cache_goes_on_like_a_fed_one():
    layer, tokens = made("csa")
    cache = layer.cache(2, TOTAL)
    layer.fill(cache, 101)
    seen: list[str] = []
    out = layer.feed(cache, tokens.cut(0, 7), done=seen.append)
    assert seen == list(PARTS)
    assert cache.lengths == (108, 108)
    assert cache.state.position.tolist() == [108, 108]
    assert out.isfinite().all()
