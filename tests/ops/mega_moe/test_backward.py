"""Gradients have the reference's bits on every device, and are close to those of the layer they approximate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moe_data import assert_same_bits
from test_mega_moe import EXPERTS, HIDDEN, INTER, LIMIT, SLOTS, mxfp8, operands

import kernelforge as kf
from kernelforge.formats import bf16, mx
from kernelforge.ops.mega_moe import conformance, reference
from kernelforge.ops.mega_moe.gradient import activation_backward, backward


def bits(seed: int, tokens: int, data: str = "normal", route: str = "dropped"):
    """The reference's operands, and an output gradient."""
    problem = conformance.Problem(tokens, SLOTS, EXPERTS, HIDDEN, INTER, LIMIT, route, data, seed)
    draw = np.random.default_rng(seed)
    grad = torch.from_numpy(draw.standard_normal((tokens, HIDDEN)).astype(np.float32)).bfloat16()
    return grad.view(torch.uint16).numpy(), *conformance.operands(problem)


def run(given, device: str = "cpu", weights: bool = True) -> tuple[torch.Tensor, ...]:
    grad, x, chosen, weight, experts = given
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (grad, x, chosen, weight, *experts)]
    halves = [tensor.view(torch.bfloat16) for tensor in tensors[:2]]
    return backward(*halves, *tensors[2:], LIMIT, weights, device)


def assert_reference(given, device: str) -> None:
    for found, expected in zip(run(given, device), reference.mega_moe_backward(*given, LIMIT), strict=True):
        assert_same_bits(found, expected)


def test_bits_are_the_references():
    assert_reference(bits(0, 9), "cpu")


@pytest.mark.slow
def test_bits_are_the_references_on_every_device(device):
    """Products are grouped_projection's kernel, which has its own tests on every device."""
    assert_reference(bits(0, 9), device)


def test_gradient_of_the_activation_has_the_references_bits(device):
    draw = np.random.default_rng(11)
    gate_up, grad = (torch.from_numpy(draw.standard_normal((9, n)).astype(np.float32)) for n in (2 * INTER, INTER))
    gate_up[3, 5], grad[4, 2] = float("nan"), float("inf")
    weight = torch.rand(9)
    both, of_weight = torch.empty(9, 2 * INTER, dtype=torch.bfloat16), torch.empty(9)
    activation_backward(gate_up, grad, weight, LIMIT, both, of_weight, device)
    halves = gate_up[:, :INTER].numpy(), gate_up[:, INTER:].numpy()
    expected = reference.activation_backward(*halves, grad.numpy(), weight.numpy(), LIMIT)
    assert_same_bits(of_weight, bf16.canonical(expected.weight))
    assert_same_bits(both, bf16.encode(np.concatenate([expected.gate, expected.up], -1)))


@pytest.mark.parametrize("route", conformance.ROUTES)
@pytest.mark.parametrize("data", ["normal", "codes", "nan", "huge", "tiny"])
def test_bits_are_the_references_for_data_of_every_kind(data, route):
    for tokens in (0, 1, 150):  # more rows at one expert than a chunk holds
        assert_reference(bits(1, tokens, data, route), "cpu")


def test_gradients_of_a_token_do_not_depend_on_the_batch():
    grad, x, chosen, weight, experts = bits(2, 40)
    together = run((grad, x, chosen, weight, experts), weights=False)
    for token in (0, 23):
        part = slice(token, token + 1)
        alone = run((grad[part], x[part], chosen[part], weight[part], experts), weights=False)
        assert torch.equal(alone[0][0], together[0][token])
        assert torch.equal(alone[1][0], together[1][token])


def test_close_to_the_gradients_of_the_mixture_in_float64():
    """The layer in float64 at the values that x has in MXFP8: what is left is the rounding of gradients of gate
    and up to bfloat16 (2^-9 at most) and, in w2's gradient, the activation's E4M3 (2.6% rms)."""
    x, chosen, weight, *packed = operands(3, 64, dropped=0)
    w1, w2 = (
        torch.from_numpy(mx.dequantize_mxfp4(packed[i].numpy(), packed[i + 1].numpy())).double().requires_grad_()
        for i in (0, 2)
    )
    wide, share = mxfp8(x).requires_grad_(), weight.double().requires_grad_()
    out = torch.zeros(x.shape, dtype=torch.float64)
    for slot in range(SLOTS):
        gate, up = torch.einsum("tqc,tc->tq", w1[chosen[:, slot].long()], wide).chunk(2, -1)
        h = torch.nn.functional.silu(gate.clamp(max=LIMIT)) * up.clamp(-LIMIT, LIMIT)
        out = out + share[:, slot, None] * torch.einsum("toj,tj->to", w2[chosen[:, slot].long()], h)
    grad = torch.randn(x.shape).bfloat16()
    wanted = torch.autograd.grad(out, (wide, share, w1, w2), grad.double())
    found = backward(grad, x, chosen, weight, *packed, LIMIT, True, "cpu")
    for ours, theirs, allowed in zip(found, wanted, (2.0**-8, 2.0**-12, 2.0**-8, 0.04), strict=True):
        assert (ours.double() - theirs).norm() / theirs.norm() < allowed


def test_autograd_reaches_x_and_the_weights_of_the_slots():
    x, chosen, weight, *packed = operands(4, 12)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    grad = torch.randn(12, HIDDEN).bfloat16()
    kf.mega_moe(x, chosen, weight, *packed, swiglu_limit=LIMIT).backward(grad)
    found = backward(grad, x.detach(), chosen, weight.detach(), *packed, LIMIT, False, "cpu")
    assert torch.equal(x.grad, found[0])
    assert torch.equal(weight.grad, found[1])
    assert found[2].numel() == found[3].numel() == 0


def test_registration_passes_torchs_own_check():
    grad = torch.randn(12, HIDDEN).bfloat16()
    utils = ("test_schema", "test_faketensor")
    arguments = (grad, *operands(5, 12), LIMIT, True, "cpu")
    torch.library.opcheck(torch.ops.kernelforge.mega_moe_backward, arguments, test_utils=utils)
