"""kf.nn.MoE is its parts in the written order, forward and backward; it learns, the same every time."""

from __future__ import annotations

import pytest
import torch

import kernelforge as kf
from kernelforge.nn import MoE
from kernelforge.ops.sliced_gemm.op import linear

EXPERTS, HIDDEN, INTER, SLOTS, LIMIT = 5, 96, 96, 3, 1.5
"""Those of the op's conformance cases."""


def layer(seed: int = 0, **more) -> MoE:
    torch.manual_seed(seed)
    settings = {"shared_inter": INTER, "scale": 1.5, "swiglu_limit": LIMIT, "trainable": True}
    return MoE(HIDDEN, INTER, EXPERTS, SLOTS, **{**settings, **more})


def tokens(count: int = 12) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()


def packed(experts) -> tuple[torch.Tensor, ...]:
    return (*kf.quantize_mxfp4(experts.gate_up.detach()), *kf.quantize_mxfp4(experts.down.detach()))


def test_bits_are_those_of_its_parts():
    module, x = layer(), tokens()
    chosen, weight = kf.route_topk(linear(x, module.router, None), None, SLOTS, scale=1.5)
    routed = kf.mega_moe(x, chosen, weight, *packed(module.experts), swiglu_limit=LIMIT)
    first = torch.zeros((12, 1), dtype=torch.int32)
    shared = kf.mega_moe(x, first, torch.ones(12, 1), *packed(module.shared), swiglu_limit=LIMIT)
    assert torch.equal(module(x), (routed.float() + shared.float()).bfloat16())
    assert torch.equal(module(x.view(3, 4, HIDDEN)).view(12, HIDDEN), module(x))
    assert torch.equal(module(x[5:6]), module(x)[5:6])
    alone = layer(shared_inter=0)
    assert torch.equal(alone(x), routed)  # the same seed: the same experts


def test_router_agrees_with_float64():
    module, x = layer(), tokens(64)
    exact = x.double() @ module.router.detach().double().T
    assert (
        linear(x, module.router, None).double() - exact
    ).norm() / exact.norm() < 1e-5  # a bfloat16 product is off by 2e-3


def test_gradients_are_those_of_the_parts_added_in_order():
    module, x, grad = layer(), tokens(), torch.randn(12, HIDDEN).bfloat16()
    leaf = x.clone().requires_grad_()
    module(leaf).backward(grad)
    parts = [x.clone().requires_grad_() for _ in range(3)]
    chosen, weight = module.route(parts[0])
    ones = torch.ones(12, 1)
    got = torch.autograd.grad(
        [module.experts(parts[1], chosen, weight), module.shared(parts[2], torch.zeros(12, 1).int(), ones)],
        [*parts, module.router, module.experts.gate_up, module.experts.down, module.shared.gate_up],
        [grad, grad],
    )
    assert torch.equal(leaf.grad, ((got[0].float() + got[1].float()) + got[2].float()).bfloat16())
    parameters = (module.router, module.experts.gate_up, module.experts.down, module.shared.gate_up)
    for parameter, wanted in zip(parameters, got[3:], strict=True):
        assert torch.equal(parameter.grad, wanted)
        assert wanted.abs().max() > 0
    assert module.bias.grad is None


def test_hash_routing_takes_experts_from_the_table():
    table = torch.tensor([[0, 1, 2], [4, 3, 2]], dtype=torch.int32)
    module, x, ids = layer(hash_table=table), tokens(), torch.arange(12) % 2
    chosen, _ = module.route(x, ids)
    assert torch.equal(chosen, table[ids])
    module(x, ids).float().square().mean().backward()
    assert module.router.grad.abs().max() > 0  # logits weigh the experts
    with pytest.raises(ValueError, match="token_ids: missing"):
        module(x)
    with pytest.raises(ValueError, match=r"hash_table: given \[2, 2\], wanted \[vocabulary, k\] with k = 3"):
        layer(hash_table=table[:, :2])


def test_it_learns_and_two_runs_learn_the_same():
    def train() -> tuple[float, float, torch.Tensor]:
        module, x = layer(2), tokens(32)
        target = torch.randn(32, HIDDEN)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        losses = []
        for _ in range(6):
            loss = torch.nn.functional.mse_loss(module(x).float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses[0], losses[-1], module.router.detach()

    first, last, router = train()
    assert last < 0.9 * first
    assert torch.equal(train()[2], router)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda:virtual", "ascend:virtual"])
def test_gradients_have_the_same_bits_on_every_device(device):
    gradients = []
    for backend in ("cpu", device):
        module, x = layer(3, backend=backend), tokens(5).requires_grad_()
        module(x).float().square().mean().backward()
        gradients.append([x.grad, *(p.grad for p in module.parameters())])
    for wanted, found in zip(*gradients, strict=True):
        assert wanted.abs().max() > 0
        assert torch.equal(found, wanted)


def test_state_can_be_loaded():
    module = layer(trainable=False)
    again = layer(7, trainable=False)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(tokens()), module(tokens()))
