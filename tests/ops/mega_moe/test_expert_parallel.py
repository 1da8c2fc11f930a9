"""The layer over processes joined by gloo: the same bits as on one, for any number of ranks, waves, schedule, order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gloo_ranks import Ranks
from moe_data import HIDDEN, INTER, LIMIT, choices, layer
from moe_ranks import run_autograd, run_backward, run_layer, run_moe, run_training

from kernelforge.formats import bf16, mx
from kernelforge.nn import MoE
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


def _grad(tokens: int) -> np.ndarray:
    """bfloat16 bits of a gradient of the layer's result."""
    return bf16.encode(np.random.default_rng(8).standard_normal((tokens, HIDDEN)).astype(np.float32))


BACKWARD_CASES = [(1, "waves"), (3, "waves"), ("auto", "waves"), (1, "serial"), (3, "two_stage")]


@pytest.mark.parametrize(
    ("choice", "share"),
    [
        ("some", "in order"),
        ("some", "all on the last rank"),
        ("some", "none"),
        ("one expert", "in order"),
        ("nothing chosen", "in order"),
    ],
)
def test_gradients_do_not_depend_on_ranks_waves_or_schedule(ranks, choice, share):
    """Weights' gradients are summed in the order of the ranks' tokens, so these go to the ranks in order."""
    weights = layer(np.random.default_rng(5), EXPERTS, HIDDEN, INTER)
    shares = _shares(share, ranks.size)
    held = [token for own in shares for token in own]
    tokens = [array[held] for array in _tokens(choice)]
    grad = _grad(len(held))
    expected = reference.mega_moe_backward(grad, *tokens, weights, LIMIT)
    places = _shares_of(shares)
    outcomes = ranks.call(run_backward, tuple(weights), tokens, grad, places, LIMIT, BACKWARD_CASES)
    for rank, outputs in enumerate(outcomes):
        for case, found in zip(BACKWARD_CASES, outputs, strict=True):
            assert_gradients(found, expected, places, rank, ranks.size, case)


def assert_gradients(found, expected, places, rank: int, size: int, case: object) -> None:
    each = EXPERTS // size
    own = slice(rank * each, (rank + 1) * each)
    wanted = expected.x[places[rank]], expected.topk_weight[places[rank]], expected.w1[own], expected.w2[own]
    for name, ours, theirs in zip(expected._fields, found, wanted, strict=True):
        assert ours.tobytes() == theirs.tobytes(), f"{name} on rank {rank}, {case}"


def _shares_of(shares: list[list[int]]) -> list[list[int]]:
    """The same shares of tokens that are numbered as the ranks hold them."""
    begins = np.cumsum([0, *(len(own) for own in shares)])
    return [list(range(begin, end)) for begin, end in itertools.pairwise(begins.tolist())]


def test_autograd_goes_over_ranks(ranks):
    weights, tokens, shares = layer(np.random.default_rng(5), EXPERTS), _tokens("some"), _shares("shuffled", ranks.size)
    grad = _grad(TOKENS)
    expected = reference.mega_moe_backward(grad, *tokens, weights, LIMIT)
    for rank, (x, weight) in enumerate(ranks.call(run_autograd, tuple(weights), tokens, grad, shares, LIMIT)):
        assert np.array_equal(x, expected.x[shares[rank]])
        assert weight.tobytes() == expected.topk_weight[shares[rank]].tobytes()


def test_a_module_over_ranks_trains_with_the_gradients_of_one_process(ranks):
    draw = np.random.default_rng(9)
    dense = [
        (0.1 * draw.standard_normal(shape)).astype(np.float32)
        for shape in ((EXPERTS, 2 * INTER, HIDDEN), (EXPERTS, HIDDEN, INTER))
    ]
    weights = (*mx.quantize_mxfp4(dense[0]), *mx.quantize_mxfp4(dense[1]))
    tokens = _tokens("some")
    grad = _grad(TOKENS)
    expected = reference.mega_moe_backward(grad, *tokens, weights, LIMIT)
    shares = _shares("in order", ranks.size)
    for rank, found in enumerate(ranks.call(run_training, dense, tokens, grad, shares, LIMIT)):
        assert_gradients(found, expected, shares, rank, ranks.size, "module")


def test_a_whole_layer_over_ranks_is_that_of_one_process(ranks):
    settings = {"hidden": HIDDEN, "inter": INTER, "experts": EXPERTS, "k": SLOTS, "shared_inter": INTER}
    settings |= {"swiglu_limit": LIMIT, "trainable": True}
    x = _tokens("some")[0]
    torch.manual_seed(0)
    module = MoE(**settings)
    out = module(torch.from_numpy(x).view(torch.bfloat16))
    out.float().sum().backward()
    shares = _shares("in order", ranks.size)
    each = EXPERTS // ranks.size
    for rank, (found, gate_up, down) in enumerate(ranks.call(run_moe, settings, x, shares)):
        own = slice(rank * each, (rank + 1) * each)
        assert np.array_equal(found, out.detach().view(torch.uint16).numpy()[shares[rank]])
        assert np.array_equal(gate_up, module.experts.gate_up.grad[own].numpy())
        assert np.array_equal(down, module.experts.down.grad[own].numpy())
