"""kf.nn.MXFP4Experts and kf.fake_quant_mxfp4: the functions' bits, gradients to master weights, and learning."""

from __future__ import annotations

import pytest
import torch

import kernelforge as kf
from kernelforge.nn import MXFP4Experts
from kernelforge.ops.mega_moe.gradient import backward

EXPERTS, HIDDEN, INTER, SLOTS, LIMIT = 5, 96, 96, 3, 1.5
"""Those of the op's conformance cases: no further kernels."""


def routed(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    chosen = torch.rand(tokens, EXPERTS).topk(SLOTS).indices.int()
    return torch.randn(tokens, HIDDEN).bfloat16(), chosen, torch.rand(tokens, SLOTS)


def dense() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(EXPERTS, 2 * INTER, HIDDEN) * 0.1, torch.randn(EXPERTS, HIDDEN, INTER) * 0.1


def test_packed_experts_give_the_bits_of_the_function():
    torch.manual_seed(0)
    gate_up, down = dense()
    x, chosen, weight = routed(12)
    packed = (*kf.quantize_mxfp4(gate_up), *kf.quantize_mxfp4(down))
    expected = kf.mega_moe(x, chosen, weight, *packed, swiglu_limit=LIMIT)
    module = MXFP4Experts.from_dense(gate_up, down, LIMIT)
    assert torch.equal(module(x, chosen, weight), expected)
    batched = [tensor.view(3, 4, -1) for tensor in (x, chosen.long(), weight)]
    assert torch.equal(module(*batched).view(12, HIDDEN), expected)
    again = MXFP4Experts(EXPERTS, HIDDEN, INTER, LIMIT)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(x, chosen, weight), expected)
    bits = 8 * sum(buffer.nbytes for buffer in module.buffers()) / (gate_up.numel() + down.numel())
    assert bits == 4.25


def test_gradients_reach_the_master_weights():
    torch.manual_seed(1)
    gate_up, down = dense()
    x, chosen, weight = routed(12)
    module = MXFP4Experts.from_dense(gate_up, down, LIMIT, trainable=True)
    x, weight, grad = x.requires_grad_(), weight.requires_grad_(), torch.randn(12, HIDDEN).bfloat16()
    module(x, chosen, weight).backward(grad)
    packed = (*kf.quantize_mxfp4(gate_up), *kf.quantize_mxfp4(down))
    expected = backward(grad, x.detach(), chosen, weight.detach(), *packed, LIMIT, True, None)
    for found, wanted in zip((x.grad, weight.grad, module.gate_up.grad, module.down.grad), expected, strict=True):
        assert torch.equal(found, wanted)


def test_experts_learn_and_two_runs_learn_the_same():
    def train() -> tuple[float, float, torch.Tensor]:
        torch.manual_seed(2)
        x, chosen, weight = routed(32)
        target = torch.randn(32, HIDDEN)
        module = MXFP4Experts.from_dense(*dense(), LIMIT, trainable=True)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        losses = []
        for _ in range(12):
            loss = torch.nn.functional.mse_loss(module(x, chosen, weight).float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses[0], losses[-1], module.down.detach()

    first, last, weights = train()
    assert last < 0.8 * first
    assert torch.equal(train()[2], weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_quantization_has_the_values_of_mxfp4_and_passes_gradients(dtype):
    w = torch.randn(4, 64).to(dtype).requires_grad_()
    values = kf.fake_quant_mxfp4(w)
    assert torch.equal(values, kf.dequantize_mxfp4(*kf.quantize_mxfp4(w.detach()), dtype))
    grad = torch.randn(4, 64).to(dtype)
    values.backward(grad)
    assert torch.equal(w.grad, grad)


def test_saturated_elements_have_no_gradient_when_asked():
    w = torch.ones(1, 32)
    w[0, :2] = torch.tensor([7.9, -7.9])  # under "floor" the scale is 1, and 6 the largest value
    w.requires_grad_()
    kf.fake_quant_mxfp4(w, "floor", stop_saturated=True).sum().backward()
    assert w.grad.tolist() == [[0.0, 0.0, *[1.0] * 30]]
    w.grad = None
    kf.fake_quant_mxfp4(w, "ceil", stop_saturated=True).sum().backward()
    assert w.grad.tolist() == [[1.0] * 32]
