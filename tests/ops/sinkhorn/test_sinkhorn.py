"""kf.sinkhorn gives the reference's bits forward and backward, on every device, and refuses bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelforge as kf
from kernelforge.ops.sinkhorn import conformance, eager, reference
from kernelforge.ops.sinkhorn.op import KERNELS, NEEDS
from kernelforge.runtime import KernelSpec, executable

LEAST = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def both(logits: np.ndarray, grad: np.ndarray, *parameters, **options) -> tuple[np.ndarray, np.ndarray]:
    """Result and gradient of the op."""
    x = torch.from_numpy(logits).requires_grad_()
    result = kf.sinkhorn(x, *parameters, **options)
    (found,) = torch.autograd.grad(result, x, torch.from_numpy(grad))
    return result.detach().numpy(), found.numpy()


def assert_same_bits(found, wanted) -> None:
    for have, want in zip(found, wanted, strict=True):
        assert np.array_equal(have.view(np.int32), want.view(np.int32))


def expected(logits: np.ndarray, grad: np.ndarray, *parameters) -> tuple[np.ndarray, np.ndarray]:
    return reference.sinkhorn(logits, *parameters), reference.sinkhorn_backward(grad, logits, *parameters)


def test_bits_are_the_references(device):
    @settings(max_examples=40 if device == "cpu" else 4, **LEAST)
    @given(
        seed=st.integers(0, 2**32 - 1),
        tokens=st.integers(20, 80),
        data=st.sampled_from(conformance.DATA),
        n_iters=st.sampled_from([(4, 20), (3, 3)]),
    )
    def holds(seed, tokens, data, n_iters):
        n, iters = n_iters
        eps = 1e-6 if n == 4 else 2.0**-20
        operands = conformance.operands("test", seed, n, tokens, data)
        assert_same_bits(both(*operands, iters, eps, backend=device), expected(*operands, iters, eps))

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize(("iters", "eps"), [(1, 1e-6), (20, 1.0), (100, 2.0**-20)])
def test_bits_are_the_references_for_every_size(device, n, iters, eps):
    operands = conformance.operands("size", 3, n, 37, "special")
    assert_same_bits(both(*operands, iters, eps, backend=device), expected(*operands, iters, eps))


@pytest.mark.parametrize(("block_T", "threads"), [(1, 1), (16, 1), (100, 4)])
def test_bits_do_not_depend_on_tile_size(block_T, threads):
    logits, grad = conformance.operands("tiles", 5, 3, 77, "special")
    found = [np.empty((77, 9), np.float32) for _ in range(2)]
    for name, inputs, out in (("", (logits,), found[0]), ("_backward", (grad, logits), found[1])):
        spec = KernelSpec.of(
            f"{KERNELS}:sinkhorn{name}", NEEDS, n=3, iters=3, eps=1e-6, block_T=block_T, threads=threads
        )
        executable(spec, "cpu")(*(torch.from_numpy(x.reshape(77, 9)) for x in (*inputs, out)))
    assert_same_bits([x.reshape(77, 3, 3) for x in found], expected(logits, grad, 3, 1e-6))


def test_bits_do_not_depend_on_the_batch():
    logits, grad = conformance.operands("batch", 1, 4, 70, "special")
    whole = both(logits, grad)
    order = np.random.default_rng(0).permutation(70)
    permuted = both(logits[order], grad[order])
    assert_same_bits(permuted, [x[order] for x in whole])
    for part in (slice(0, 1), slice(1, 34), slice(34, 70)):
        assert_same_bits(both(logits[part], grad[part]), [np.ascontiguousarray(x[part]) for x in whole])
    batched = both(logits.reshape(2, 5, 7, 4, 4), grad.reshape(2, 5, 7, 4, 4))
    assert_same_bits([x.reshape(70, 4, 4) for x in batched], whole)


def test_bits_do_not_depend_on_the_number_of_threads():
    logits, grad = conformance.operands("threads", 2, 4, 3000, "normal")
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(both(logits, grad))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert_same_bits(other, found[0])


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (2, 0, 3, 3), (1, 2, 3, 4, 4)])
def test_leading_axes_are_free(device, shape):
    logits = torch.zeros(shape)
    out = kf.sinkhorn(logits, *(() if shape[-1] == 4 else (3,)), backend=device)
    assert out.shape == shape
    assert torch.allclose(out, torch.full(shape, 1 / shape[-1]), atol=1e-5)


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
def test_a_spoiled_matrix_is_nan_and_spoils_no_other(spoiled):
    logits = torch.randn(3, 4, 4)
    logits[1, 2, 3] = spoiled
    out = kf.sinkhorn(logits)
    assert (out[1].view(torch.int32) == 0x7FC00000).all()
    assert torch.equal(out[[0, 2]], kf.sinkhorn(logits[[0, 2]].contiguous()))


def test_masked_logits_become_almost_zero_and_a_masked_row_is_nan():
    logits = torch.zeros(2, 4, 4)
    logits[0, 0, 1:] = float("-inf")
    logits[1, 0] = float("-inf")
    out = kf.sinkhorn(logits)
    assert out[0, 0, 0] > 0.95
    assert (out[0, 0, 1:] < 1e-4).all()
    assert out[1].isnan().all()


def test_gradient_is_close_to_float64_autograd():
    for size in (1.0, 5.0):
        logits, grad = (np.random.default_rng(7).standard_normal((2, 500, 4, 4)) * size).astype(np.float32)
        x = torch.from_numpy(logits).double().requires_grad_()
        result = eager.sinkhorn(x)
        (wanted,) = torch.autograd.grad(result, x, torch.from_numpy(grad).double())
        ours = both(logits, grad)
        for have, want in zip(ours, (result.detach(), wanted), strict=True):
            error = (torch.from_numpy(have).double() - want).flatten(1).norm(dim=1)
            assert (error.norm() / want.norm()) < 1e-6
            # Gradients of single matrices cancel; they are measured against the gradient that came in.
            scale = torch.from_numpy(grad).double().flatten(1).norm(dim=1).clamp(min=1)
            assert (error / scale).max() < 1e-5


def test_float64_formula_passes_gradcheck():
    x = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(eager.sinkhorn, (x,))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((np.zeros((4, 4)),), TypeError, "logits: a torch.Tensor is wanted"),
        ((torch.zeros(4, 4).double(),), TypeError, r"logits: given float64.*wanted float32\[4, 4\]"),
        ((torch.zeros(4),), ValueError, r"logits: given float32\[4\].*wanted float32\[..., n, n\]"),
        ((torch.zeros(3, 4),), ValueError, r"logits: given float32\[3, 4\]"),
        ((torch.zeros(1, 1),), ValueError, "n must be from 2 to 8"),
        ((torch.zeros(9, 9),), ValueError, "n must be from 2 to 8"),
        ((torch.zeros(2, 4, 4).transpose(0, 1).transpose(0, 2),), ValueError, r"logits"),
        ((torch.zeros(4, 4), 0), ValueError, "iters: given 0, wanted an integer from 1 to 100"),
        ((torch.zeros(4, 4), 101), ValueError, "iters: given 101"),
        ((torch.zeros(4, 4), 20, 1e-9), ValueError, "eps: given 1e-09"),
        ((torch.zeros(4, 4), 20, float("nan")), ValueError, "eps: given nan"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        kf.sinkhorn(*arguments)


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="numerics: sinkhorn has 'exact'"):
        kf.sinkhorn(torch.zeros(4, 4), numerics="native")


def test_torch_registration_is_complete():
    logits = torch.randn(5, 4, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.kernelforge.sinkhorn.default, (logits, 20, 1e-6, None))
    torch.library.opcheck(
        torch.ops.kernelforge.sinkhorn_backward.default, (torch.randn(5, 4, 4), logits.detach(), 20, 1e-6, None)
    )
