"""The layer over processes joined by gloo: the same bits as on one, for any number of ranks, waves, schedule, order."""

from __future__ import annotations

import numpy as np
import pytest
from gloo_ranks import Ranks
from moe_data import HIDDEN, INTER, LIMIT, choices, layer
from moe_ranks import run_layer

from kernelforge.formats import bf16
from kernelforge.ops.mega_moe import reference

EXPERTS, TOKENS, SLOTS = 8, 37, 3
CASES = [(waves, "waves") for waves in (1, 2, 3, 8, "auto")] + [(1, "serial"), (3, "two_stage"), (8, "two_stage")]


@pytest.fixture(scope="module", params=[1, 2, 4])
def ranks(request):
    with Ranks(request.param) as started:
        yield started


def _tokens(kind: str, experts: int = EXPERTS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(7)
    x = bf16.encode(draw.standard_normal((TOKENS, HIDDEN)).astype(np.float32))
    topk_idx = choices(draw, TOKENS, SLOTS, experts, dropped=0.1)
    if kind == "one expert":
        topk_idx[:] = -1
        topk_idx[:, 1] = experts - 1
    elif kind == "an expert without tokens":
        topk_idx[topk_idx == 2] = -1
    elif kind == "nothing chosen":
        topk_idx[:] = -1
    return x, topk_idx, draw.random((TOKENS, SLOTS)).astype(np.float32)


def _shares(kind: str, size: int) -> list[list[int]]:
    """Which tokens each rank holds, and in what order."""
    order = np.random.default_rng(3).permutation(TOKENS)
    if kind == "in order":
        order = np.arange(TOKENS)
    elif kind == "all on the last rank":
        return [*([[]] * (size - 1)), order.tolist()]
    elif kind == "none":
        return [[]] * size
    cuts = sorted(np.random.default_rng(4).integers(0, TOKENS + 1, size - 1).tolist())
    return [part.tolist() for part in np.split(order, cuts)]


@pytest.mark.parametrize(
    ("choice", "share"),
    [
        ("some", "in order"),
        ("some", "shuffled"),
        ("some", "all on the last rank"),
        ("some", "none"),
        ("one expert", "shuffled"),
        ("an expert without tokens", "in order"),
        ("nothing chosen", "in order"),
    ],
)
def test_bits_do_not_depend_on_ranks_waves_schedule_or_token_order(ranks, choice, share):
    weights = layer(np.random.default_rng(5), EXPERTS, HIDDEN, INTER)
    tokens = _tokens(choice)
    expected = reference.mega_moe(*tokens, weights, LIMIT)
    shares = _shares(share, ranks.size)
    for rank, outputs in enumerate(ranks.call(run_layer, tuple(weights), tokens, shares, LIMIT, CASES)):
        for case, output in zip(CASES, outputs, strict=True):
            assert np.array_equal(output, expected[shares[rank]]), f"rank {rank}, {case}"
