"""What goes wrong on one rank ends the call on every rank, soon, with an error that says why; and the group goes on."""

from __future__ import annotations

import numpy as np
import pytest
from gloo_ranks import Ranks
from moe_data import HIDDEN, INTER, LIMIT, choices, layer
from moe_ranks import configure, held_after, run_layer, run_with_checksums, timed_failure

from kernelforge.formats import bf16
from kernelforge.ops.mega_moe import reference

EXPERTS, TOKENS, SLOTS, SIZE = 4, 21, 2, 2
WEIGHTS = tuple(layer(np.random.default_rng(5), EXPERTS, HIDDEN, INTER))
DRAW = np.random.default_rng(7)
TOKENS_OF_ALL = (
    bf16.encode(DRAW.standard_normal((TOKENS, HIDDEN)).astype(np.float32)),
    choices(DRAW, TOKENS, SLOTS, EXPERTS, dropped=0.0),
    DRAW.random((TOKENS, SLOTS)).astype(np.float32),
)
SHARES = [list(range(9)), list(range(9, TOKENS))]


@pytest.fixture(scope="module")
def ranks():
    with Ranks(SIZE) as started:
        yield started


def _layer_works(ranks: Ranks) -> None:
    expected = reference.mega_moe(*TOKENS_OF_ALL, WEIGHTS, LIMIT)
    outcomes = ranks.call(run_layer, WEIGHTS, TOKENS_OF_ALL, SHARES, LIMIT, [(2, "waves")])
    for rank, (output,) in enumerate(outcomes):
        assert np.array_equal(output, expected[SHARES[rank]])


def test_an_expert_out_of_range_is_told_to_every_rank_and_the_group_goes_on(ranks):
    x, topk_idx, weight = TOKENS_OF_ALL
    wrong = topk_idx.copy()
    wrong[12, 1] = EXPERTS
    outcomes = ranks.call(timed_failure, WEIGHTS, (x, wrong, weight), SHARES, 2)
    assert [kind for kind, _, _ in outcomes] == ["PeerRefused", "ValueError"]
    assert f"given expert {EXPERTS}" in outcomes[1][1]
    assert "rank 1 refused this call: ValueError: topk_idx: given expert" in outcomes[0][1]
    _layer_works(ranks)


def test_ranks_that_ask_for_different_waves_are_told(ranks):
    ranks.start(timed_failure, WEIGHTS, TOKENS_OF_ALL, SHARES, 1, ranks=[0])
    ranks.start(timed_failure, WEIGHTS, TOKENS_OF_ALL, SHARES, 2, ranks=[1])
    for kind, said, _ in ranks.finish():
        assert kind == "PeerRefused"
        assert said.startswith("waves: ")
    _layer_works(ranks)


@pytest.mark.parametrize("corrupt_on", [-1, 0, 1])
def test_checksums_find_a_corrupted_payload_and_the_next_call_reconnects(ranks, corrupt_on):
    outcomes = ranks.call(run_with_checksums, WEIGHTS, TOKENS_OF_ALL, SHARES, LIMIT, corrupt_on)
    expected = reference.mega_moe(*TOKENS_OF_ALL, WEIGHTS, LIMIT)
    for rank, outcome in enumerate(outcomes):
        if corrupt_on < 0:
            assert np.array_equal(outcome, expected[SHARES[rank]])
        elif rank == corrupt_on:
            assert outcome[0] == "PayloadCorrupted"
            assert f"from rank {1 - rank}" in outcome[1]
        else:
            assert outcome[0] == "PeerLost"
            assert f"rank {corrupt_on} gave up: PayloadCorrupted" in outcome[1]
    if corrupt_on >= 0:
        _layer_works(ranks)


def test_a_rank_that_never_arrives_is_missed_within_the_timeout_and_may_come_back(ranks):
    ranks.call(configure, 2.0)
    _layer_works(ranks)
    ranks.start(timed_failure, WEIGHTS, TOKENS_OF_ALL, SHARES, 2, ranks=[0])
    ((kind, said, seconds),) = ranks.finish([0])
    assert (kind, said[:6]) == ("PeerLost", "rank 1")
    assert 1.5 < seconds < 6
    # The late one finds itself given up; then both connect again.
    ranks.start(timed_failure, WEIGHTS, TOKENS_OF_ALL, SHARES, 2, ranks=[1])
    ((kind, said, seconds),) = ranks.finish([1])
    assert kind == "PeerLost"
    assert "rank 0 gave up: PeerLost: rank 1 did not answer" in said
    assert seconds < 1.5  # not the two seconds of the timeout
    _layer_works(ranks)


def test_nothing_is_left_behind_by_a_thousand_calls(ranks):
    ranks.call(configure)  # the usual timeout: a busy machine is not a lost rank
    for before, after in ranks.call(held_after, WEIGHTS, TOKENS_OF_ALL, SHARES, 1000):
        assert after[0] - before[0] < 2 << 20  # less than 2 KiB a call; a buffer of this layer has 10
        threads, files = after[1] - before[1], after[2] - before[2]
        assert threads <= 0, before  # fewer: those of connections that broke in tests before this one
        assert files <= 0, before


@pytest.mark.parametrize(("channel", "number"), [(0, 1), (1, 2), (2, 1), (2, 2)])
def test_a_rank_that_dies_is_missed_by_all_others_at_once(channel, number):
    """Before agreeing; before tokens of its second wave leave; before results of its first, of its last wave do."""
    size = 3
    weights = tuple(layer(np.random.default_rng(5), 6, HIDDEN, INTER))
    topk_idx = ((np.arange(TOKENS)[:, None] + np.arange(SLOTS)) % 6).astype(np.int32)  # every rank needs every expert
    tokens = (TOKENS_OF_ALL[0], topk_idx, TOKENS_OF_ALL[2])
    shares = [list(range(7)), list(range(7, 14)), list(range(14, TOKENS))]
    with Ranks(size) as ranks:
        ranks.start(timed_failure, weights, tokens, shares, 2, 2, channel, number)
        outcomes = ranks.finish(timeout=50)
    assert outcomes[2] is None
    for kind, said, seconds in outcomes[:2]:
        assert kind == "PeerLost", said
        assert seconds < 30
