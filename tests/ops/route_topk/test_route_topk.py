"""kf.route_topk gives the reference's bits, on every device, agrees with torch's router and refuses bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelforge as kf
from kernelforge.ops.route_topk import conformance, reference
from kernelforge.ops.route_topk.op import BUILDER, NEEDS
from kernelforge.runtime import KernelSpec, executable

PROBLEM = {"experts": 70, "k": 6, "score": "sqrtsoftplus", "renormalize": True, "scale": 1.5}
"""That of the conformance cases: no further kernel."""


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(0, 80), data=st.sampled_from(conformance.DATA))
def test_bits_are_the_references(seed, tokens, data):
    problem = conformance.Problem(tokens, 70, 6, "sqrtsoftplus", True, 1.5, False, data, seed)
    found, expected = conformance._run(problem, "cpu"), conformance._expected(problem)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_bits_on_every_device_in_every_variant(device):
    for case in conformance.cases(1, "ci"):
        found, expected = case.run(device), case.expected()
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected), case.name


@pytest.mark.parametrize("block_T", [1, 64])
def test_bits_do_not_depend_on_tile_size(block_T):
    logits = torch.randn(37, 70)
    index, weight = torch.empty((37, 6), dtype=torch.int32), torch.empty(37, 6)
    spec = KernelSpec.of(BUILDER, NEEDS, **PROBLEM, given=False, block_T=block_T, threads=64)
    executable(spec, "cpu")(logits, torch.zeros(70), index, weight)
    experts, weights = kf.route_topk(logits, None, 6, scale=1.5)
    assert torch.equal(index, experts)
    assert torch.equal(weight, weights)


def test_equal_scores_go_by_index_and_nan_comes_last():
    logits = torch.zeros(1, 70)
    logits[0, 0] = float("nan")
    assert kf.route_topk(logits, None, 6, scale=1.5)[0].tolist() == [[1, 2, 3, 4, 5, 6]]


def test_bias_chooses_but_does_not_weigh():
    logits = torch.randn(9, 70)
    bias = torch.zeros(70)
    bias[[3, 5, 8, 13, 21, 34]] = 100.0
    experts, weights = kf.route_topk(logits, bias, 6, scale=1.5)
    assert all(set(row) == {3, 5, 8, 13, 21, 34} for row in experts.tolist())
    scores = torch.nn.functional.softplus(logits.double()).sqrt().gather(1, experts.long())
    torch.testing.assert_close(weights.double(), 1.5 * scores / scores.sum(-1, keepdim=True), rtol=2e-6, atol=0)


def test_agrees_with_transformers_router():
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    config = modeling.DeepseekV4Config(
        hidden_size=64, num_experts_per_tok=6, num_local_experts=70, n_routed_experts=70, routed_scaling_factor=1.5
    )
    router = modeling.DeepseekV4TopKRouter(config)
    torch.nn.init.normal_(router.weight)
    router.e_score_correction_bias.normal_(std=0.1)
    logits, theirs, chosen = router(torch.randn(50, 64))
    experts, weights = kf.route_topk(logits.detach(), router.e_score_correction_bias, 6, scale=1.5)
    assert torch.equal(experts.sort(-1).values, chosen.int().sort(-1).values)
    torch.testing.assert_close(weights.sort(-1).values, theirs.detach().sort(-1).values, rtol=2e-6, atol=0)


def test_scores_are_close_to_their_real_values():
    x = np.linspace(-30, 30, 4096, dtype=np.float32).reshape(16, 256)
    wide = torch.from_numpy(x).double()
    for score, real in (
        ("sqrtsoftplus", torch.nn.functional.softplus(wide).sqrt()),
        ("sigmoid", wide.sigmoid()),
        ("softmax", wide.softmax(-1)),
    ):
        found = torch.from_numpy(reference.scores(x, score)).double()
        torch.testing.assert_close(found, real, rtol=1e-6, atol=2.0**-50)


def scores_of(logits: torch.Tensor, score: str) -> torch.Tensor:
    """Scores as torch has them."""
    if score == "sqrtsoftplus":
        return torch.nn.functional.softplus(logits).sqrt()
    return logits.sigmoid() if score == "sigmoid" else logits.softmax(-1)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("score", conformance.SCORES)
def test_gradient_is_close_to_that_in_float64(score, renormalize):
    draw = np.random.default_rng(3)
    logits = (3 * draw.standard_normal((37, 70))).astype(np.float32)
    grad = draw.standard_normal((37, 6)).astype(np.float32)
    chosen, _ = reference.route_topk(logits, None, 6, score, renormalize, 1.5)
    chosen[0, 1] = chosen[0, 0]  # a hash table may name an expert twice
    wide = torch.from_numpy(logits).double().requires_grad_()
    weights = scores_of(wide, score).gather(1, torch.from_numpy(chosen).long())
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    (1.5 * weights).backward(torch.from_numpy(grad).double())
    found = torch.from_numpy(reference.route_topk_backward(grad, logits, chosen, score, renormalize, 1.5))
    assert (found - wide.grad).norm() / wide.grad.norm() < 1e-6
    torch.testing.assert_close(found.double(), wide.grad, rtol=1e-5, atol=1e-6 * wide.grad.abs().max().item())


def test_autograd_reaches_the_logits_and_never_the_bias():
    logits, bias = torch.randn(37, 70, requires_grad=True), torch.randn(70, requires_grad=True)
    chosen, weights = kf.route_topk(logits, bias, 6, scale=1.5)
    grad = torch.randn(37, 6)
    weights.backward(grad)
    expected = reference.route_topk_backward(
        grad.numpy(), logits.detach().numpy(), chosen.numpy(), "sqrtsoftplus", True, 1.5
    )
    assert logits.grad.numpy().tobytes() == expected.tobytes()
    assert bias.grad is None
    assert not chosen.requires_grad
    unchosen = torch.ones(37, 70, dtype=torch.bool).scatter(1, chosen.long(), torch.zeros_like(weights) > 0)
    assert (logits.grad[unchosen] == 0).all()


def test_a_renormalized_weight_of_nothing_has_no_gradient():
    logits = torch.full((1, 70), -200.0, requires_grad=True)
    _, weights = kf.route_topk(logits, None, 6, scale=1.5)
    weights.backward(torch.ones(1, 6))
    assert (logits.grad == 0).all()


def test_wrong_arguments_are_named():
    logits = torch.randn(4, 70)
    table = torch.zeros((3, 6), dtype=torch.int64)
    ids = torch.tensor([0, 1, 2, 0])
    with pytest.raises(TypeError, match=r"scores: given float64"):
        kf.route_topk(logits.double(), None, 6)
    with pytest.raises(ValueError, match="k: given 71, wanted 1 to E = 70"):
        kf.route_topk(logits, None, 71)
    with pytest.raises(ValueError, match=r"score: given 'tanh', wanted one of 'sqrtsoftplus'"):
        kf.route_topk(logits, None, 6, score="tanh")
    with pytest.raises(ValueError, match=r"bias: given float32\[3\].*wanted float32\[70\]"):
        kf.route_topk(logits, torch.zeros(3), 6)
    with pytest.raises(ValueError, match="scale: given 0"):
        kf.route_topk(logits, None, 6, scale=0.0)
    with pytest.raises(ValueError, match="token_ids: given without hash_table"):
        kf.route_topk(logits, None, 6, token_ids=ids)
    with pytest.raises(TypeError, match=r"token_ids: a torch\.Tensor is wanted"):
        kf.route_topk(logits, None, 6, hash_table=table)
    with pytest.raises(ValueError, match="token_ids: given ids from 0 to 3, hash_table has rows 0 to 2"):
        kf.route_topk(logits, None, 6, hash_table=table, token_ids=ids + torch.tensor([0, 0, 1, 0]))
    with pytest.raises(ValueError, match="hash_table: names experts from 0 to 70, scores have 0 to 69"):
        kf.route_topk(logits, None, 6, hash_table=table + torch.tensor([[0], [0], [70]]), token_ids=ids)


def test_registration_passes_torchs_own_check():
    options = (None, 6, "sqrtsoftplus", True, 1.5, "cpu")
    torch.library.opcheck(torch.ops.kernelforge.route_topk, (torch.randn(37, 70), torch.randn(70), *options))
    torch.library.opcheck(
        torch.ops.kernelforge.route_topk,
        (torch.randn(37, 70, requires_grad=True), torch.randn(70), *options),
        # Not test_aot_dispatch_dynamic, which adds up all outputs in the type of the first, here int32.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    chosen = torch.randint(0, 70, (37, 6), dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.kernelforge.route_topk_backward,
        (torch.randn(37, 6), torch.randn(37, 70), chosen, "sqrtsoftplus", True, 1.5, "cpu"),
    )


def test_gradients_of_a_compiled_function_are_the_same():
    def gradient(run) -> torch.Tensor:
        logits = torch.randn(37, 70, generator=torch.Generator().manual_seed(0)).requires_grad_()
        run(logits)[1].square().sum().backward()
        return logits.grad

    def route(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return kf.route_topk(logits, None, 6, scale=1.5)

    compiled = torch.compile(route, backend="aot_eager", fullgraph=True)
    assert torch.equal(gradient(compiled), gradient(route))
