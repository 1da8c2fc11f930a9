"""Gradients of kf.indexer_logits: the reference's bits, autograd's values, the same bits however they are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_data import FORMATS, D, H, arrays, draw

import kernelforge as kf
from kernelforge.ops.lightning_indexer import reference as ref
from kernelforge.ops.lightning_indexer.backward import backward
from kernelforge.ops.lightning_indexer.conformance import GRADIENTS

Tensor = torch.Tensor


def bits(x: Tensor) -> np.ndarray:
    return x.view(torch.uint16 if x.dtype == torch.bfloat16 else torch.int32).numpy()


def assert_same(found: tuple[Tensor, ...], wanted: tuple) -> None:
    names = GRADIENTS if len(found) == 3 else (GRADIENTS[0], GRADIENTS[2])
    for name, one, other in zip(names, found, wanted, strict=True):
        right = bits(other) if isinstance(other, Tensor) else other
        np.testing.assert_array_equal(bits(one), right.view(bits(one).dtype), err_msg=name)


def gradients(call, grad: Tensor, **options) -> tuple[Tensor, ...]:
    return backward(grad, *call, False, True, options.get("backend"))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 4),
    entries=st.integers(1, 300),
    kind=st.sampled_from([(qk_format, data) for qk_format, kinds in FORMATS.items() for data in kinds]),
)
def test_gradients_are_the_references(seed, queries, entries, kind):
    call = draw(queries, entries, kind[1], seed=seed, qk_format=kind[0])
    grad = torch.randn(queries, entries, generator=torch.Generator().manual_seed(seed)).bfloat16()
    wanted = ref.indexer_logits_backward(grad.float().numpy(), *arrays(call))
    assert_same(gradients(call, grad), wanted)


@pytest.mark.parametrize("heads", [1, 40])
def test_gradients_for_any_number_of_heads_and_of_float32_logits(heads):
    call = draw(3, 200, "special", heads=heads, qk_format="bf16")
    grad = torch.randn(3, 200)
    wanted = ref.indexer_logits_backward(grad.numpy(), *arrays(call), "float32")
    assert_same(gradients(call, grad), wanted)


def wide(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def leaves(S: int = 6, T: int = 200) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k = wide(S, H, D, seed=1).requires_grad_(), wide(T, D, seed=2).requires_grad_()
    weights = wide(S, H, seed=3).float().requires_grad_()
    return q, k, weights, torch.tensor([0, 1, 50, 128, 129, 200][:S], dtype=torch.int32)


def in_float64(q: Tensor, k: Tensor, weights: Tensor, kv_len: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Autograd's gradients of the formula in float64."""
    inputs = [x.detach().double().requires_grad_() for x in (q, k, weights)]
    scores = torch.einsum("sht,sh->st", torch.einsum("shd,td->sht", *inputs[:2]).relu(), inputs[2])
    seen = torch.arange(k.shape[0]) < kv_len[:, None]
    return torch.autograd.grad((scores * grad.double())[seen].sum(), inputs)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_gradients_are_those_of_float64_autograd(out_dtype):
    q, k, weights, kv_len = leaves()
    grad = wide(6, 200, seed=4).to(out_dtype)
    logits = kf.indexer_logits(q, None, k, None, weights, kv_len, out_dtype)
    found = torch.autograd.grad(logits, (q, k, weights), grad)
    wanted = in_float64(q, k, weights, kv_len, grad)
    # dq and dk are rounded to bfloat16, weights' gradients are float32.
    assert [x.dtype for x in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert distance(found[0], wanted[0]) < 2e-3
    assert distance(found[1], wanted[1]) < 2e-3
    assert distance(found[2], wanted[2]) < 2e-5


@pytest.mark.parametrize("kind", ["normal", "student", "outliers"])
def test_gradients_are_closer_to_float64_than_autograd_in_bfloat16(kind):
    q, k, weights, _ = leaves()
    random = np.random.default_rng(5)
    with torch.no_grad():
        for x in (q, k):
            if kind == "student":
                x.copy_(torch.from_numpy(random.standard_t(3, tuple(x.shape))))
            if kind == "outliers":
                x[..., :4] *= 100
    seen = torch.full((6,), 200, dtype=torch.int32)
    grad = wide(6, 200, seed=4)
    found = torch.autograd.grad(kf.indexer_logits(q, None, k, None, weights, seen), (q, k, weights), grad)
    customary = (weights.bfloat16()[:, None] @ (q.flatten(0, 1) @ k.T).relu().view(6, H, 200)).squeeze(1)
    usual = torch.autograd.grad(customary, (q, k, weights), grad)
    for ours, theirs, wanted in zip(found, usual, in_float64(q, k, weights, seen, grad), strict=True):
        assert distance(ours, wanted) < distance(theirs, wanted)


def test_the_formula_passes_gradcheck():
    """The float64 oracle above is itself a right derivative."""
    q, k, weights, kv_len = (x.detach() for x in leaves(4, 150))
    q, k, weights = (x[..., :3].double() if i < 2 else x.double() for i, x in enumerate((q, k, weights)))
    seen = torch.arange(k.shape[0]) < kv_len[:, None]

    def scores(*inputs: Tensor) -> Tensor:
        positive = torch.einsum("shd,td->sht", inputs[0], inputs[1]).relu()
        return torch.einsum("sht,sh->st", positive, inputs[2])[seen]

    inputs = [x[:, :2].clone() if i != 1 else x[:20].clone() for i, x in enumerate((q, k, weights))]
    seen = seen[:, :20]
    assert torch.autograd.gradcheck(scores, [x.requires_grad_() for x in inputs])


def test_quantized_logits_are_the_fp4_indexers_and_gradients_pass_straight_through():
    q, k, weights, kv_len = leaves()
    grad = wide(6, 200, seed=4)
    logits = kf.indexer_logits(q, None, k, None, weights, kv_len, quantize=True)
    (q4, q_scale), (k4, k_scale) = kf.quantize_mxfp4(q.detach()), kf.quantize_mxfp4(k.detach())
    stored = kf.indexer_logits(q4, q_scale, k4, k_scale, weights.detach(), kv_len)
    np.testing.assert_array_equal(bits(logits.detach()), bits(stored))
    found = torch.autograd.grad(logits, (q, k, weights), grad)
    # Straight through: the gradients at the rounded values.
    assert_same(found, backward(grad, q4, q_scale, k4, k_scale, weights.detach(), kv_len, False, True, None))
    rounded = (kf.dequantize_mxfp4(q4, q_scale), kf.dequantize_mxfp4(k4, k_scale), weights)
    for ours, wanted in zip(found, in_float64(*rounded, kv_len, grad), strict=True):
        assert distance(ours, wanted) < 2e-3


def test_packed_operands_train_their_weights():
    call = draw(3, 70)
    weights = call.weights.clone().requires_grad_()
    grad = wide(3, 70, seed=4)
    logits = call._replace(weights=weights).logits()
    (found,) = torch.autograd.grad(logits, (weights,), grad)
    np.testing.assert_array_equal(bits(found), bits(gradients(call, grad)[2]))


def test_a_batch_is_its_sequences_and_unseen_entries_do_not_count():
    parts = [draw(3, 150, seed=seed, qk_format="bf16") for seed in range(2)]
    grads = [wide(3, 150, seed=seed) for seed in range(2)]
    whole = [None if x[0] is None else torch.stack(x) for x in zip(*parts, strict=True)]
    found = backward(torch.stack(grads), *whole, False, True, None)
    for b, (call, grad) in enumerate(zip(parts, grads, strict=True)):
        alone = gradients(call, grad)
        assert_same(tuple(x[b] for x in found), alone)
        # One query on its own, with no more of the cache than it sees, whatever the rest's gradients are.
        seen = int(call.kv_len[1].clamp(0, 150))
        if seen:
            one = call.queries(slice(1, 2))._replace(k=call.k[:seen].contiguous(), kv_len=None)
            dq, _, dweights = gradients(one, grad[1:2, :seen].contiguous())
            assert_same((dq, dweights), (alone[0][1:2], alone[2][1:2]))


@pytest.mark.parametrize("tiles", [(16, 32, 32), (32, 128, 64)])
def test_bits_do_not_depend_on_tile_size(monkeypatch, tiles):
    from kernelforge.ops.lightning_indexer import backward as module

    call, grad = draw(5, 300, "special", heads=40, qk_format="bf16"), wide(5, 300, seed=4)
    wanted = gradients(call, grad)
    own = {"block_T": tiles[1], "block_D": tiles[2], "threads": 16}
    heads = {"query_gradient": {"block_H": tiles[0]}, "entry_gradient": {}}
    monkeypatch.setattr(module, "tuned", lambda kernel, *_: own | heads[kernel])
    module._plan.cache_clear()
    assert_same(gradients(call, grad), wanted)
    monkeypatch.undo()
    module._plan.cache_clear()


def test_bits_do_not_depend_on_threads_or_the_run():
    call, grad = draw(20, 300, "bits", qk_format="bf16"), wide(20, 300, seed=4)
    wanted, before = gradients(call, grad), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same(gradients(call, grad), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("queries", "entries"), [(0, 5), (3, 0)])
def test_nothing_to_sum_up(queries, entries):
    call = draw(queries, entries, lengths="all", qk_format="bf16")
    found = gradients(call, torch.zeros(queries, entries).bfloat16())
    assert [x.shape for x in found] == [call.q.shape, call.k.shape, call.weights.shape]
    assert all((x == 0).all() for x in found)


def test_bad_arguments_are_named():
    q, k, weights, _ = leaves()
    with pytest.raises(TypeError, match=r"quantize: given with q uint8.*wanted bfloat16 q"):
        kf.indexer_logits(*draw(3, 70)[:5], quantize=True)
    many = torch.zeros(1, 513, D, dtype=torch.bfloat16, requires_grad=True)
    logits = kf.indexer_logits(many, None, k, None, torch.zeros(1, 513))
    with pytest.raises(ValueError, match="513 heads; gradients are for at most 512"):
        logits.sum().backward()
    with pytest.raises(ValueError, match=r"grad: given bfloat16.*wanted bfloat16 or float32.6, 200"):
        backward(
            torch.zeros(6, 3).bfloat16(), q.detach(), None, k.detach(), None, weights.detach(), None, False, True, None
        )


def test_torch_registration_is_complete():
    q, k, weights, kv_len = leaves(3, 70)
    logits = torch.ops.kernelforge.indexer_logits.default
    for quantize in (False, True):
        torch.library.opcheck(logits, (q, None, k, None, weights, kv_len[:3], quantize, torch.bfloat16, "exact", None))
    grad, tensors = wide(3, 70, seed=4), (q.detach(), None, k.detach(), None, weights.detach(), kv_len[:3])
    for keys in (False, True):
        torch.library.opcheck(
            backward, (grad, *tensors, False, keys, None), test_utils=("test_schema", "test_faketensor")
        )
