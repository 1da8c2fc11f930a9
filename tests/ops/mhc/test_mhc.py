"""Hyper-connections give the reference's bits forward and backward, on every device, and refuse bad arguments."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelforge as kf
from kernelforge.bench import peak_memory
from kernelforge.ops.mhc import benchmark, conformance, plans
from kernelforge.ops.mhc.conformance import DATA, Problem
from kernelforge.runtime import KernelSpec

LEAST = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
MODEL = Problem(4, 160, "bfloat16", False, 2, 19, "normal", 0)
"""No extent is a multiple of a tile's: 640 elements are five chunks of the projection."""


def assert_same_bits(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        have = np.ascontiguousarray(found[name])
        assert have.shape == want.shape, name
        assert np.array_equal(have.view(np.int32), np.ascontiguousarray(want).view(np.int32)), name


def test_bits_are_the_references(device):
    @settings(max_examples=25 if device == "cpu" else 3, **LEAST)
    @given(
        seed=st.integers(0, 2**32 - 1),
        batch=st.integers(1, 3),
        sequence=st.integers(5, 30),
        data=st.sampled_from(DATA),
    )
    def holds(seed, batch, sequence, data):
        problem = dataclasses.replace(MODEL, batch=batch, sequence=sequence, data=data, seed=seed)
        assert_same_bits(conformance.run(problem, device), conformance.expected(problem))

    holds()


@pytest.mark.parametrize("data", ["normal", "special", "outliers"])
@pytest.mark.parametrize("head", [False, True])
def test_float32_streams_and_the_head_have_the_references_bits(data, head):
    problem = Problem(3, 32, "float32", head, 2, 19, data, 1)
    assert_same_bits(conformance.run(problem, "cpu"), conformance.expected(problem))


@pytest.mark.slow
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize(("n", "C", "dtype"), [(2, 32, "float32"), (4, 160, "bfloat16"), (8, 32, "bfloat16")])
def test_every_size_has_the_references_bits(device, n, C, dtype, head):
    problem = Problem(n, C, dtype, head, 1, 37, "special", 2)
    assert_same_bits(conformance.run(problem, device), conformance.expected(problem))


@pytest.mark.parametrize("sequence", [1, 127, 128, 129, 300])
def test_parameters_gradients_are_summed_in_chunks_of_128_tokens(sequence):
    problem = dataclasses.replace(MODEL, sequence=sequence)
    assert_same_bits(conformance.run(problem, "cpu"), conformance.expected(problem))


SCHEDULES = [
    {
        "pre": (16, 32),
        "post": (3, 32),
        "pre_backward": (5, 32),
        "post_backward": (7, 32),
        "weight_gradient": (None, 32),
    },
    {"pre": (48, 96), "post": (16, 160), "pre_backward": (32, 160), "post_backward": (1, None)},
]


@pytest.mark.parametrize("tiles", SCHEDULES)
def test_bits_do_not_depend_on_tile_size(tiles, monkeypatch):
    problem = dataclasses.replace(MODEL, data="special", seed=4)
    tuned = plans.specs

    def with_tiles(p, parameters):
        found = tuned(p, parameters)
        for name, (block_T, block_C) in tiles.items():
            given = dict(found[name].parameters)
            given |= {key: value for key, value in (("block_T", block_T), ("block_C", block_C)) if value}
            found[name] = KernelSpec.of(found[name].builder, found[name].needs, **given)
        return found

    monkeypatch.setattr(plans, "specs", with_tiles)
    plans.kernel.cache_clear()
    try:
        assert_same_bits(conformance.run(problem, "cpu"), conformance.expected(problem))
    finally:
        plans.kernel.cache_clear()


def block(x, y, weights):
    """One block of a model: forward results and the gradients of a weighted sum of them."""
    leaves = [t.clone().requires_grad_() for t in (x, y, *weights)]
    collapsed, post, comb = kf.mhc_pre(leaves[0], *leaves[2:])
    out = kf.mhc_post(leaves[1] + collapsed, leaves[0], post, comb)
    (out.float() * torch.linspace(-1, 1, x.shape[-1])).sum().backward()
    return out.detach(), [leaf.grad for leaf in leaves]


def streams(batch: int, sequence: int, seed: int = 0):
    torch.manual_seed(seed)
    x = torch.randn(batch, sequence, 4, 160).bfloat16()
    weights = torch.randn(24, 640) * 0.05, torch.randn(3), torch.randn(24)
    return x, torch.randn(batch, sequence, 160).bfloat16(), weights


def test_bits_do_not_depend_on_the_batch():
    x, y, weights = streams(3, 20)
    out, grads = block(x, y, weights)
    for part in (slice(0, 1), slice(1, 3)):
        alone, alone_grads = block(x[part], y[part], weights)
        assert torch.equal(alone, out[part])
        assert torch.equal(alone_grads[0], grads[0][part])
        assert torch.equal(alone_grads[1], grads[1][part])
    swapped, swapped_grads = block(x[[2, 0, 1]], y[[2, 0, 1]], weights)
    assert torch.equal(swapped, out[[2, 0, 1]])
    assert torch.equal(swapped_grads[0], grads[0][[2, 0, 1]])


def test_parameters_gradients_do_not_depend_on_how_a_batch_is_split():
    """Each part starts from the running total of those before."""
    x, _, weights = streams(4, 40)
    grads = torch.randn(4, 40, 160).bfloat16(), torch.randn(4, 40, 4), torch.randn(4, 40, 4, 4)
    *_, raw, inverse_rms = torch.ops.kernelforge.mhc_pre(x, *weights, 20, 1e-6, 1e-6, None)

    def summed(cuts):
        total = [torch.zeros_like(w) for w in weights]
        for part in map(slice, cuts, cuts[1:]):
            given = [t[part].contiguous() for t in (*grads, x)]
            _, *total = torch.ops.kernelforge.mhc_pre_backward(
                *given, *weights, raw[part].contiguous(), inverse_rms[part].contiguous(), *total, 20, 1e-6, None
            )
        return total

    whole = summed([0, 4])
    for cuts in ([0, 1, 2, 3, 4], [0, 2, 4], [0, 1, 4]):
        for have, want in zip(summed(cuts), whole, strict=True):
            assert torch.equal(have, want)


def test_bits_do_not_depend_on_the_number_of_threads():
    given = streams(2, 150)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out, grads = block(*given)
            found.append([out, *grads])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_leading_axes_are_free():
    x, y, weights = streams(2, 12)
    collapsed, post, comb = kf.mhc_pre(x, *weights)
    for shape in ((24,), (2, 3, 4)):
        again = kf.mhc_pre(x.view(*shape, 4, 160), *weights)
        for have, want in zip(again, (collapsed, post, comb), strict=True):
            assert torch.equal(have.flatten(), want.flatten())
            assert have.shape[: len(shape)] == shape
        out = kf.mhc_post(y.view(*shape, 160), x.view(*shape, 4, 160), *again[1:])
        assert torch.equal(out.flatten(), kf.mhc_post(y, x, post, comb).flatten())


def test_a_spoiled_token_spoils_no_other():
    x, y, weights = streams(1, 9)
    x[0, 4, 1, 7] = float("nan")
    x[0, 5, 2, 3] = float("inf")
    out, _ = block(x, y, weights)
    assert out[0, 4].isnan().all()
    assert not out[0, [0, 1, 2, 3, 6, 7, 8]].isnan().any()


X, FN, SCALE, BASE = torch.zeros(2, 3, 4, 64), torch.zeros(24, 256), torch.zeros(3), torch.zeros(24)
Y, POST, COMB = torch.zeros(2, 3, 64), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        ("mhc_pre", (X.half(), FN, SCALE, BASE), TypeError, "x: given float16.*bfloat16 or float32"),
        ("mhc_pre", (X[0, 0], FN, SCALE, BASE), ValueError, r"x: given float32\[4, 64\].*\[..., tokens, n, C\]"),
        ("mhc_pre", (X[..., :40].contiguous(), FN, SCALE, BASE), ValueError, "C must be a positive multiple of 32"),
        ("mhc_pre", (X[:, :, :1].contiguous(), FN, SCALE, BASE), ValueError, "n must be from 2 to 8"),
        ("mhc_pre", (X.transpose(0, 1), FN, SCALE, BASE), ValueError, r"x\.contiguous\(\)"),
        ("mhc_pre", (X, FN[:20], SCALE, BASE), ValueError, r"fn: given float32\[20, 256\].*wanted float32\[24, 256\]"),
        ("mhc_pre", (X, FN.bfloat16(), SCALE, BASE), TypeError, "fn: given bfloat16"),
        ("mhc_pre", (X, FN, SCALE[:1], BASE), ValueError, r"scale: given float32\[1\].*wanted float32\[3\]"),
        ("mhc_pre", (X, FN, SCALE, None), TypeError, "base: a torch.Tensor is wanted"),
        ("mhc_head", (X, FN, SCALE, BASE), ValueError, r"fn: given float32\[24, 256\].*wanted float32\[4, 256\]"),
        ("mhc_post", (Y.bfloat16(), X, POST, COMB), TypeError, "y: given bfloat16"),
        ("mhc_post", (Y[:1], X, POST, COMB), ValueError, r"y: given float32\[1, 3, 64\].*wanted float32\[2, 3, 64\]"),
        ("mhc_post", (Y, X, POST, COMB[..., :3].contiguous()), ValueError, "comb: given"),
    ],
)
def test_bad_arguments_are_named(function, arguments, error, words):
    with pytest.raises(error, match=words):
        getattr(kf, function)(*arguments)


@pytest.mark.parametrize("parameters", [{"eps": 0.0}, {"norm_eps": 1e-9}, {"iters": 0}, {"numerics": "loose"}])
def test_bad_parameters_are_named(parameters):
    (name,) = parameters
    with pytest.raises(ValueError, match=f"{name}: "):
        kf.mhc_pre(X, FN, SCALE, BASE, **parameters)


def test_torch_registration_is_complete():
    x, y, weights = streams(1, 5)
    ops = torch.ops.kernelforge
    leaves = [t.requires_grad_() for t in (x, *weights)]
    torch.library.opcheck(ops.mhc_pre.default, (*leaves, 20, 1e-6, 1e-6, None))
    with torch.no_grad():
        collapsed, post, comb, raw, inverse_rms = ops.mhc_pre(*leaves, 20, 1e-6, 1e-6, None)
        plain = [t.detach() for t in leaves]
        given = (collapsed, post, comb, *plain, raw, inverse_rms, None, None, None, 20, 1e-6, None)
        torch.library.opcheck(ops.mhc_pre_backward.default, given)
        torch.library.opcheck(ops.mhc_post_backward.default, (plain[0], y, plain[0], post, comb, None))
    torch.library.opcheck(ops.mhc_post.default, (y.requires_grad_(), leaves[0], post.requires_grad_(), comb, None))


def test_the_heads_registration_is_complete():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 32)
    weights = torch.randn(3, 96) * 0.1, torch.randn(1), torch.randn(3)
    leaves = [t.requires_grad_() for t in (x, *weights)]
    torch.library.opcheck(torch.ops.kernelforge.mhc_head.default, (*leaves, 1e-6, 1e-6, None))


def test_large_results_are_written_whole():
    """Results of some size get other pages from the system; 9 MiB here."""
    x, y, weights = streams(4, 1800)
    collapsed, post, comb = kf.mhc_pre(x, *weights)
    out = kf.mhc_post(y, x, post, comb)
    for part in (slice(0, 1), slice(3, 4)):
        alone = kf.mhc_pre(x[part], *weights)
        assert torch.equal(alone[0], collapsed[part])
        assert torch.equal(kf.mhc_post(y[part], x[part], *alone[1:]), out[part])


def test_forward_needs_no_temporary_of_the_streams_size():
    pre, post = benchmark._operands(2048, 2048, "cpu")
    size = pre[0].nbytes
    for call, results in (
        (lambda: kf.mhc_pre(*pre), size // 4),
        (lambda: kf.mhc_post(*post), size),
    ):
        rise = peak_memory(call)
        if rise is not None:
            assert rise < results + size // 2
