"""Gradients of compression: the reference's bits on every device, and the gradients that calculus gives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from compress_oracle import entries_in_double

import kernelforge as kf
from kernelforge.ops.compress import conformance
from kernelforge.ops.compress.backward import compress_backward
from kernelforge.ops.compress.conformance import Problem

CSA, HCA = conformance.problems("ci")
both = pytest.mark.parametrize("p", [CSA, HCA], ids=["csa", "hca"])
NAMES = ("kv", "gate", "position_bias", "norm_weight")


def drawn(p: Problem, data: str = "normal", seed: int = 0):
    random = np.random.default_rng(seed)
    return conformance.draw(p, data, random), conformance.draw_grad(p, random)


def compress(p: Problem):
    return kf.csa_compress if p.overlap else kf.hca_compress


@both
def test_gradients_are_the_references(p, device):
    # More than one chunk of 32 entries for CSA.
    q = dataclasses.replace(p, S=34 * p.ratio + 1) if p.overlap else p
    for data in conformance.DATA:
        inputs, grad = drawn(q, data)
        want, got = conformance.expected_gradients(q, inputs, grad), conformance.gradients(q, inputs, grad, device)
        for name in NAMES:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name}, {data}")


@both
def test_gradients_are_those_of_double_precision(p):
    q = dataclasses.replace(p, dtype="float32")
    inputs, grad = drawn(q)
    given = [tensor.double() for tensor in conformance.tensors(q, inputs)]
    for tensor in given[:4]:
        tensor.requires_grad_()
    entries_in_double(*given, q.ratio, q.overlap).backward(torch.from_numpy(grad).double())
    found = conformance.gradients(q, inputs, grad, "cpu")
    for name, tensor in zip(NAMES, given, strict=False):
        got, want = found[name].view(np.float32), tensor.grad.numpy()
        assert np.abs(got - want).max() <= 2e-6 * np.abs(want).max(), name


@both
def test_gradients_of_tokens_do_not_depend_on_the_batch(p):
    q = dataclasses.replace(p, batch=3)
    inputs, grad = drawn(q, "wide", 1)
    together = conformance.gradients(q, inputs, grad, "cpu")
    for b in range(3):
        alone = dataclasses.replace(inputs, kv=inputs.kv[b : b + 1], gate=inputs.gate[b : b + 1])
        found = conformance.gradients(dataclasses.replace(q, batch=1), alone, grad[b : b + 1], "cpu")
        for name in ("kv", "gate"):
            np.testing.assert_array_equal(found[name][0], together[name][b])


@both
def test_tokens_without_an_entry_have_no_gradient(p):
    inputs, grad = drawn(p)
    found = conformance.gradients(p, inputs, grad, "cpu")
    complete = p.S // p.ratio * p.ratio
    assert complete < p.S
    assert not found["kv"][:, complete:].any()
    assert not found["gate"][:, complete:].any()
    if p.overlap:  # nobody comes after the last window to take its series a
        assert not found["kv"][:, complete - p.ratio : complete, : p.D].any()


@both
def test_what_no_entry_takes_is_cleared(p):
    """Sequences of every length, and fewer entries than they complete, in memory that holds NaN."""
    q = dataclasses.replace(p, batch=4)
    inputs, grad = drawn(q)
    given = conformance.tensors(q, inputs)
    count = q.S // q.ratio - 1
    lengths = [q.S, 0, q.ratio, q.ratio - 1]
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        found = compress_backward(
            torch.from_numpy(grad[:, :count].copy()).to(given[0].dtype),
            *given,
            torch.tensor(lengths, dtype=torch.int32),
            q.ratio,
            1e-6,
            None,
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(tensor.isnan().any() for tensor in found)
    for tensor in found[:2]:
        for b, length in enumerate(lengths):
            windows = min(length // q.ratio, count)
            end = windows * q.ratio
            assert not tensor[b, end:].any()
            assert windows == 0 or tensor[b, :end, -q.D :].any()
            if q.overlap and windows:
                assert not tensor[b, end - q.ratio : end, : q.D].any()


@both
def test_operators_keep_torchs_rules(p):
    inputs, grad = drawn(p)
    kv, gate, bias, weight, cos, sin = conformance.tensors(p, inputs)
    state = kf.CompressState.start(p.batch, p.ratio, p.D, p.overlap, kv.dtype)
    lengths = torch.full((p.batch,), p.S, dtype=torch.int32)
    count = p.S // p.ratio
    trained = [x.clone().requires_grad_() for x in (kv, gate, bias, weight)]
    ops = torch.ops.kernelforge
    arguments = (*trained, cos, sin, *state, lengths, p.ratio, count, 1e-6, None)
    torch.library.opcheck(ops.compress.default, arguments)
    torch.library.opcheck(ops.compress_state.default, (kv, gate, *state, lengths, None))
    back = (torch.from_numpy(grad).to(kv.dtype), kv, gate, bias, weight, cos, sin, lengths, p.ratio, 1e-6, None)
    torch.library.opcheck(ops.compress_backward.default, back)


@both
def test_training_takes_whole_sequences(p):
    inputs, _ = drawn(p)
    given = conformance.tensors(p, inputs)
    _, state = compress(p)(*given, ratio=p.ratio)
    given[0].requires_grad_()
    with pytest.raises(ValueError, match="trains on whole sequences"):
        compress(p)(*given, ratio=p.ratio, state=state)


@pytest.mark.parametrize("windows", [1, 2])
def test_a_state_is_fed_on_before_the_gradients_are_asked_for(windows):
    """The state shares nothing with what the gradient keeps."""
    p = dataclasses.replace(HCA, S=windows * HCA.ratio)
    inputs, grad = drawn(p)
    given = conformance.tensors(p, inputs)
    for tensor in given[:4]:
        tensor.requires_grad_()
    entries, state = compress(p)(*given, ratio=p.ratio)
    with torch.no_grad():
        compress(p)(*given, ratio=p.ratio, state=state, count=0)
    assert state.position.tolist() == [2 * p.S] * p.batch
    entries.backward(torch.from_numpy(grad).to(entries.dtype))
    assert np.array_equal(conformance.bits_of(given[0].grad), conformance.expected_gradients(p, inputs, grad)["kv"])
