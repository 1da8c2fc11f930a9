"""A compiled kernel takes one contiguous tensor for each of its arguments, on every device."""

from __future__ import annotations

import pytest
import torch

from kernelforge import backends
from kernelforge.backends import Executable
from kernelforge.ops.sinkhorn import op
from kernelforge.runtime import KernelSpec, executable, schedule

N, ITERS, ROWS = 4, 2, 5


@pytest.fixture(params=["cpu", "cuda:virtual", "ascend:virtual"])
def kernel(request: pytest.FixtureRequest) -> Executable:
    """Sinkhorn of rows of 4 x 4 logits."""
    try:
        backends.device(request.param)
    except backends.DeviceUnavailable as error:
        pytest.skip(str(error))
    tiles = schedule("sinkhorn", request.param, n=N, backward=False, words=ITERS * N * N)
    spec = KernelSpec.of(f"{op.KERNELS}:sinkhorn", op.NEEDS, n=N, iters=ITERS, eps=1e-6, **tiles)
    return executable(spec, request.param)


def test_a_tensor_with_gaps_is_named_and_nothing_is_written(kernel):
    logits, wide = torch.zeros(ROWS, N * N), torch.full((ROWS, 2 * N * N), 7.0)
    for given in ((wide[:, ::2], torch.empty(ROWS, N * N)), (logits, wide[:, ::2])):
        with pytest.raises(
            ValueError, match=r"^(\w+): given \[5, 16\] with strides \[32, 2\], .*; pass \1.contiguous\(\)"
        ):
            kernel(*given)
    assert bool((wide == 7).all())
    kernel(logits, wide[:, ::2].contiguous())  # as the message says


def test_permuted_rows_are_refused(kernel):
    with pytest.raises(ValueError, match=r"with strides \[1, 5\]"):
        kernel(torch.zeros(N * N, ROWS).T, torch.zeros(ROWS, N * N))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_tensors_is_refused(kernel, count):
    with pytest.raises(TypeError, match=f"takes 2 tensors, given {count}"):
        kernel(*[torch.zeros(ROWS, N * N)] * count)


def test_a_tensor_with_gaps_does_not_make_up_for_one_too_many(kernel):
    whole, strided = torch.zeros(ROWS, N * N), torch.zeros(ROWS, 2 * N * N)[:, ::2]
    with pytest.raises(TypeError, match="takes 2 tensors, given 3"):
        kernel(whole, strided, whole)
