"""Hyper-connections are close to float64, forward and backward, and agree with other implementations."""

from __future__ import annotations

import pytest
import torch

import kernelforge as kf
from kernelforge.ops.mhc import eager

T, N, C = 96, 4, 160
KEPT = {"normal": 1e-5, "heavy-tailed": 1e-4, "outliers": 3e-4}
"""What two slices keep of a bfloat16 row whose elements differ in size; float32 streams have three slices."""


def operands(kind: str, dtype: torch.dtype, head: bool = False) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(11)
    x = torch.randn(2, T, N, C)
    if kind == "heavy-tailed":
        x = torch.distributions.StudentT(3.0).sample(x.shape)
    if kind == "outliers":
        x[..., ::40] *= 100
    outputs = N if head else N * (N + 2)
    return x.to(dtype), torch.randn(outputs, N * C) * 0.03, torch.rand(1 if head else 3) + 0.5, torch.randn(outputs)


def relative(have: torch.Tensor, want: torch.Tensor) -> float:
    return ((have.double() - want).norm() / want.norm()).item()


def gradients(function, leaves, weights):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((out.to(weight.dtype) * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    return outputs, torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("kind", ["normal", "heavy-tailed", "outliers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", ["mhc_pre", "mhc_head", "mhc_post"])
def test_results_and_gradients_are_close_to_float64(function, dtype, kind):
    given = operands(kind, dtype, head=function == "mhc_head")
    if function == "mhc_post":
        x = given[0]
        post, comb = torch.rand(2, T, N) * 2, kf.sinkhorn(torch.randn(2, T, N, N))
        given = (torch.randn(2, T, C).to(dtype), x, post, comb)
    wide = [t.double() for t in given]
    torch.manual_seed(5)
    # The gradient of a bfloat16 result comes in as bfloat16: let its values be exact in it.
    shapes = [out.shape for out in _tuple(getattr(eager, function)(*wide))]
    weights = [torch.randn(shape).bfloat16().float() for shape in shapes]
    outputs, grads = gradients(getattr(kf, function), given, weights)
    wanted, wanted_grads = gradients(getattr(eager, function), wide, [w.double() for w in weights])
    for have, want in [*zip(outputs, wanted, strict=True), *zip(grads, wanted_grads, strict=True)]:
        exact = 1e-5 if dtype == torch.float32 else KEPT[kind]
        # bfloat16 results carry their own rounding, half of 2^-8 at most.
        assert relative(have, want) < (exact if have.dtype == torch.float32 else 2e-3)


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


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
