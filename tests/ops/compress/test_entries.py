"""kf.csa_compress and kf.hca_compress give the reference's bits, however sequences are fed, batched or tiled."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelforge as kf
from kernelforge.ops.compress import conformance, plans
from kernelforge.ops.compress.conformance import DATA, Problem

CSA, HCA = conformance.problems("ci")
VIRTUAL = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
both = pytest.mark.parametrize("p", [CSA, HCA], ids=["csa", "hca"])


def longer(p: Problem, S: int, batch: int = 1) -> Problem:
    return dataclasses.replace(p, S=S, batch=batch)


def inputs_of(p: Problem, data: str = "normal", seed: int = 0) -> conformance.Inputs:
    return conformance.draw(p, data, np.random.default_rng(seed))


def compress(p: Problem):
    return kf.csa_compress if p.overlap else kf.hca_compress


@both
def test_entries_are_the_references(p, device):
    @settings(max_examples=30 if device == "cpu" else 3, **VIRTUAL)
    @given(
        seed=st.integers(0, 2**32 - 1), windows=st.integers(0, 3), rest=st.integers(0, 127), data=st.sampled_from(DATA)
    )
    def holds(seed, windows, rest, data):
        q = longer(p, windows * p.ratio + rest % p.ratio, 2)
        inputs = inputs_of(q, data, seed)
        np.testing.assert_array_equal(conformance.fed(q, inputs, (), device), conformance.expected_entries(q, inputs))

    holds()


@both
@pytest.mark.parametrize("pieces", ["ones", "primes", "windows"])
def test_bits_do_not_depend_on_the_pieces(p, pieces):
    q = longer(p, 3 * p.ratio + 2)
    inputs = inputs_of(q, "wide")
    primes = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59]
    cuts = {"ones": range(1, q.S), "primes": np.cumsum(primes).tolist(), "windows": range(q.ratio, q.S, q.ratio)}
    inside = [cut for cut in cuts[pieces] if cut < q.S]
    np.testing.assert_array_equal(conformance.fed(q, inputs, inside, "cpu"), conformance.expected_entries(q, inputs))


@both
def test_bits_do_not_depend_on_random_cuts(p):
    q = longer(p, 4 * p.ratio + 1)
    inputs = inputs_of(q, "special", 5)
    want = conformance.expected_entries(q, inputs)

    @settings(max_examples=40, deadline=None)
    @given(cuts=st.lists(st.integers(0, q.S), max_size=9).map(sorted))
    def holds(cuts):  # equal cuts feed pieces of no tokens
        np.testing.assert_array_equal(conformance.fed(q, inputs, cuts, "cpu"), want)

    holds()


@both
def test_sequences_of_a_batch_have_lengths_of_their_own(p, device):
    """Each call gives every sequence another number of tokens; together they are what the reference makes of them."""
    q = longer(p, 3 * p.ratio, 3)
    inputs = inputs_of(q)
    kv, gate, *rest = conformance.tensors(q, inputs)
    steps = [(p.ratio + 1, 0, 2), (1, p.ratio - 1, p.ratio), (p.ratio, p.ratio, 1)]
    state, fed, found = None, np.zeros(3, int), [[], [], []]
    for step in steps:
        S = max(step)
        pieces = [torch.full((3, S, q.width), float("nan"), dtype=kv.dtype) for _ in range(2)]
        for b, n in enumerate(step):
            for piece, whole in zip(pieces, (kv, gate), strict=True):
                piece[b, :n] = whole[b, fed[b] : fed[b] + n]
        lengths = torch.tensor(step, dtype=torch.int32)
        entries, state = compress(q)(*pieces, *rest, ratio=q.ratio, state=state, lengths=lengths, backend=device)
        for b, n in enumerate(step):
            completed = (fed[b] + n) // q.ratio - fed[b] // q.ratio
            found[b].append(conformance.bits_of(entries)[b, :completed])
            assert not entries[b, completed:].count_nonzero()
        fed += step
    assert state.position.tolist() == fed.tolist()
    want = conformance.expected_entries(q, inputs, fed.tolist())
    for b, n in enumerate(fed):
        np.testing.assert_array_equal(np.concatenate(found[b]), want[b, : n // q.ratio])


@both
def test_bits_do_not_depend_on_the_batch(p):
    q = longer(p, 2 * p.ratio + 1, 3)
    inputs = inputs_of(q, "special", 2)
    together = conformance.fed(q, inputs, (), "cpu")
    for b in range(3):
        alone = dataclasses.replace(inputs, kv=inputs.kv[b : b + 1], gate=inputs.gate[b : b + 1])
        np.testing.assert_array_equal(conformance.fed(longer(q, q.S), alone, (p.ratio,), "cpu")[0], together[b])


@pytest.fixture
def tiles(monkeypatch):
    """Replace the schedule of one kernel by another."""

    def replace(kernel, chosen):
        before = plans.schedule

        def schedule(op, device, **problem):
            return chosen if problem["kernel"] == kernel else before(op, device, **problem)

        monkeypatch.setattr(plans, "schedule", schedule)
        plans.compiled.cache_clear()

    yield replace
    plans.compiled.cache_clear()


@both
@pytest.mark.parametrize("block_N", [1, 3])
def test_entries_do_not_depend_on_tiles(p, block_N, tiles):
    q = longer(p, 2 * p.ratio + 1, 2)
    inputs = inputs_of(q, "wide", 3)
    tiles("compress", {"block_N": block_N, "block_C": 32, "threads": 64})
    np.testing.assert_array_equal(conformance.fed(q, inputs, (), "cpu"), conformance.expected_entries(q, inputs))


@pytest.mark.slow
@both
@pytest.mark.parametrize("threads", [64, 256])
def test_entries_do_not_depend_on_threads(p, threads, tiles):
    q = longer(p, 2 * p.ratio + 1, 2)
    inputs = inputs_of(q, "wide", 3)
    tiles("compress", {"block_N": 2, "block_C": 32, "threads": threads})
    for device in ("cuda:virtual", "ascend:virtual"):
        np.testing.assert_array_equal(conformance.fed(q, inputs, (), device), conformance.expected_entries(q, inputs))
