"""Hyper-connections are close to float64, forward and backward, and agree with other implementations."""

from __future__ import annotations

import pytest
import torch

import kernelforge as kf
from kernelforge.ops.mhc import eager

B, T, N, C = 2, 96, 4, 160
LIMIT = 1e-5
"""Of every result and gradient, relative to float64."""


def operands(kind: str, dtype: torch.dtype, head: bool = False) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(11)
    x = torch.randn(B, T, N, C)
    if kind == "heavy-tailed":
        x = torch.distributions.StudentT(3.0).sample(x.shape)
    if kind == "outliers":
        x[..., ::40] *= 100
    outputs = N if head else N * (N + 2)
    return x.to(dtype), torch.randn(outputs, N * C) * 0.03, torch.rand(1 if head else 3) + 0.5, torch.randn(outputs)


def relative(have: torch.Tensor, want: torch.Tensor, size: torch.Tensor | None = None) -> float:
    """Distance from float64, relative to the norm of ``size`` (else of ``want``).

    What is stored as bfloat16 cannot be nearer than half its unit in the last place: only what lies beyond counts.
    """
    error = (have.double() - want).abs()
    if have.dtype == torch.bfloat16:
        error = (error - torch.ldexp(torch.ones_like(want), torch.frexp(want).exponent - 9)).clamp(min=0)
    return (error.norm() / (want if size is None else size).norm()).item()


def gradients(function, leaves, weights):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((out.to(weight.dtype) * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return outputs, list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "outliers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", ["mhc_pre", "mhc_head", "mhc_post"])
def test_results_and_gradients_are_close_to_float64(function, dtype, kind):
    given = operands(kind, dtype, head=function == "mhc_head")
    if function == "mhc_post":
        x = given[0]
        post, comb = torch.rand(B, T, N) * 2, kf.sinkhorn(torch.randn(B, T, N, N))
        given = (torch.randn(B, T, C).to(dtype), x, post, comb)
    wide = [t.double() for t in given]
    if function != "mhc_post":  # a factor of each token's own, to see the terms that its gradient sums
        wide[2] = wide[2].view(-1, 1, 1, 1).repeat(1, B, T, 1).view(*(3,) * (function == "mhc_pre"), B, T, 1)
    torch.manual_seed(5)
    # The gradient of a bfloat16 result comes in as bfloat16: let its values be exact in it.
    shapes = [out.shape for out in _tuple(getattr(eager, function)(*wide))]
    weights = [torch.randn(shape).bfloat16().float() for shape in shapes]
    outputs, grads = gradients(getattr(kf, function), given, weights)
    wanted, wanted_grads = gradients(getattr(eager, function), wide, [w.double() for w in weights])
    sizes = [want.detach() for want in (*wanted, *wanted_grads)]
    if function != "mhc_post":
        # Three sums, or one, over all tokens, which may cancel: measured against the terms' magnitudes.
        terms = wanted_grads[2].view(-1, B * T)
        wanted_grads[2], sizes[len(wanted) + 2] = terms.sum(1), terms.abs().sum(1)
    for have, want, size in zip([*outputs, *grads], [*wanted, *wanted_grads], sizes, strict=True):
        assert have.shape == want.shape
        assert relative(have, want, size) < LIMIT


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_streams_of_either_type_give_the_same_weights():
    """The projection has one definition: bfloat16 values are cut like the same values in float32."""
    x, *weights = operands("heavy-tailed", torch.bfloat16)
    for have, want in zip(kf.mhc_pre(x, *weights)[1:], kf.mhc_pre(x.float(), *weights)[1:], strict=True):
        assert torch.equal(have, want)


def test_float64_formulas_pass_gradcheck():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    leaves = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((15, 24), (3,), (15,))]
    assert torch.autograd.gradcheck(eager.mhc_pre, (x, *leaves))
    head = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 24), (1,), (3,))]
    assert torch.autograd.gradcheck(eager.mhc_head, (x, *head))
    post = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 8), (2, 3, 8), (2, 3), (2, 3, 3))]
    assert torch.autograd.gradcheck(eager.mhc_post, tuple(post))


def test_agrees_with_transformers():
    modeling = pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    configuration = pytest.importorskip("transformers.models.deepseek_v4.configuration_deepseek_v4")
    config = configuration.DeepseekV4Config(hidden_size=C, hc_mult=N)
    x, fn, scale, base = operands("normal", torch.bfloat16)
    theirs = modeling.DeepseekV4HyperConnection(config)
    with torch.no_grad():
        for parameter, value in ((theirs.fn, fn), (theirs.scale, scale), (theirs.base, base)):
            parameter.copy_(value)
        post, comb, collapsed = theirs(x)
        ours = kf.mhc_pre(
            x, fn, scale, base, iters=config.hc_sinkhorn_iters, eps=config.hc_eps, norm_eps=config.rms_norm_eps
        )
        torch.testing.assert_close(ours[0], collapsed)
        torch.testing.assert_close(ours[1], post, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[2], comb, rtol=1e-4, atol=1e-5)
        head = modeling.DeepseekV4HyperHead(config)
        for parameter, value in ((head.hc_fn, fn[:N]), (head.hc_scale, scale[:1]), (head.hc_base, base[:N])):
            parameter.copy_(value)
        torch.testing.assert_close(
            kf.mhc_head(
                x, fn[:N].contiguous(), scale[:1].contiguous(), base[:N].contiguous(), norm_eps=config.rms_norm_eps
            ),
            head(x),
        )
