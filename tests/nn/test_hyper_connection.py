"""kf.nn.HyperConnection: the ops around a block, recomputation and gradient accumulation that change no bit."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from toy_language_model import train

import kernelforge as kf

HIDDEN = 160


def connections(count: int, **options):
    torch.manual_seed(1)
    made = [kf.nn.HyperConnection(HIDDEN, 4, **options) for _ in range(count)]
    for module in made:
        torch.nn.init.constant_(module.scale, 0.5)
    return made


def block(y):
    return torch.tanh(y) * 2


def run(modules, x):
    """Streams after the blocks, and all gradients."""
    x = x.clone().requires_grad_()
    out = x
    for module in modules:
        out = module(out, block)
    (out.float() * torch.linspace(-1, 1, HIDDEN)).sum().backward()
    return out.detach(), [x.grad, *(p.grad for module in modules for p in module.parameters())]


def streams(batch: int = 2, sequence: int = 40) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(batch, sequence, 4, HIDDEN).bfloat16()


def assert_same(have, want) -> None:
    assert torch.equal(have[0], want[0])
    for a, b in zip(have[1], want[1], strict=True):
        assert torch.equal(a, b)


def test_is_the_ops_around_the_block():
    (module,) = connections(1)
    x = streams()
    collapsed, post, comb = kf.mhc_pre(x, module.fn, module.scale, module.base)
    assert torch.equal(module(x, block), kf.mhc_post(block(collapsed), x, post, comb))
    head = kf.nn.HyperHead(HIDDEN, 4)
    assert torch.equal(head(x), kf.mhc_head(x, head.fn, head.scale, head.base))


def test_expanding_copies_an_embedding_into_every_stream():
    (module,) = connections(1)
    hidden = torch.randn(2, 3, HIDDEN)
    x = module.expand(hidden)
    assert x.shape == (2, 3, 4, HIDDEN)
    assert all(torch.equal(x[:, :, j], hidden) for j in range(4))


@pytest.mark.parametrize("kept", [{0}, {0, 2}, set()])
def test_recomputation_changes_no_bit(kept):
    plain = run(connections(4), streams())
    modules = connections(4)
    for i, module in enumerate(modules):
        module.recompute = i not in kept
    assert_same(run(modules, streams()), plain)


def _kept_streams(recompute: bool) -> list[bool]:
    """Which of the streams between four blocks are still in memory after the forward pass."""
    x = streams().requires_grad_()
    seen, out = [], x
    for module in connections(4, recompute=recompute):
        out = module(out, block)
        seen.append(weakref.ref(out))
    gc.collect()
    kept = [reference() is not None for reference in seen[:-1]]
    out.sum().backward()
    return kept


def test_recomputation_keeps_no_streams_between_blocks():
    assert _kept_streams(recompute=False) == [True, True, True]
    assert _kept_streams(recompute=True) == [False, False, False]


def test_gradients_accumulate_in_the_written_order():
    x = streams(4)
    whole = connections(2, accumulate_in_order=True)
    _, grads = run(whole, x)
    for cuts in ([1, 1, 1, 1], [2, 2], [1, 3]):
        modules = connections(2, accumulate_in_order=True)
        for part in x.split(cuts):
            _, found = run(modules, part)
        for have, want in zip(found[1:], grads[1:], strict=True):
            assert torch.equal(have, want)


def test_ordered_accumulation_of_one_pass_is_autograds():
    assert_same(run(connections(2, accumulate_in_order=True), streams()), run(connections(2), streams()))


def test_weights_of_transformers_load():
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    configuration = pytest.importorskip("transformers.models.deepseek_v4.configuration_deepseek_v4")
    theirs = modeling.DeepseekV4HyperConnection(configuration.DeepseekV4Config(hidden_size=HIDDEN, hc_mult=4))
    ours = kf.nn.HyperConnection(HIDDEN, 4)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    post, comb, collapsed = theirs(streams())
    have = ours.pre(streams())
    for a, b in zip(have, (collapsed, post, comb), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("hidden", "count", "words"), [(100, 4, "hidden_size: given 100"), (64, 9, "streams: given 9")]
)
def test_bad_sizes_are_named(hidden, count, words):
    for kind in (kf.nn.HyperConnection, kf.nn.HyperHead):
        with pytest.raises(ValueError, match=words):
            kind(hidden, count)


def assert_same_training(have, want) -> None:
    assert have[0] == want[0]
    assert all(map(torch.equal, have[1], want[1]))


def test_training_ends_in_the_same_bits():
    """Three steps of four layers: other threads, other micro-batches, recomputation."""
    plain = train(3, threads=1, parts=[4], layers=4)
    assert_same_training(train(3, threads=2, parts=[1, 3], layers=4, recompute=True), plain)


@pytest.mark.slow
def test_two_hundred_steps_of_twelve_layers_end_in_the_same_bits():
    first = train(200, threads=1, parts=[4])
    assert first[0][-1] < 0.5 * first[0][0]
    assert_same_training(train(200, threads=3, parts=[1, 2, 1], recompute=True), first)
