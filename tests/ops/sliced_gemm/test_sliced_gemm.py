"""Products by exact dots: the reference's bits for every layout and type, whatever the tiles; close to float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernelforge.ops.sliced_gemm.op import KERNELS, NEEDS, linear, linear_backward, product, product_over_rows
from kernelforge.ops.sliced_gemm.reference import product as reference
from kernelforge.runtime import KernelSpec, executable

K, N = 160, 40
"""Two chunks, and no multiple of a tile."""


def matrix(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.bfloat16, special: bool = False):
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((rows, columns)) * np.exp2(draw.integers(-12, 12, (rows, columns)))
    found = torch.from_numpy(x.astype(np.float32)).to(dtype)
    if special and found.numel():
        found.view(-1)[:: max(found.numel() // 3, 1)] = torch.tensor(float("nan"))
    return found


def wanted(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    slices = [2 if side.dtype == torch.bfloat16 else 3 for side in (a, b)]
    return reference(a.float().numpy(), b.float().numpy(), *slices)


def same(found: torch.Tensor, expected: np.ndarray) -> bool:
    return found.numpy().tobytes() == np.ascontiguousarray(expected).tobytes()


def test_linear_and_its_gradients_have_the_references_bits(device):
    for rows in (0, 1, 33):
        assert_linear(rows, device)


def assert_linear(rows: int, device: str) -> None:
    x, w = matrix(rows, K, 1), matrix(N, K, 2, torch.float32)
    grad = matrix(rows, N, 3, torch.float32)
    assert same(linear(x, w, device), wanted(x, w))
    x_grad, w_grad = linear_backward(grad, x, w, device)
    assert torch.equal(x_grad, torch.from_numpy(wanted(grad, w.T.contiguous())).bfloat16())
    assert same(w_grad, wanted(x.T.contiguous(), grad.T.contiguous()).T)


@pytest.mark.parametrize("special", [False, True])
def test_every_layout_of_bfloat16_has_the_references_bits(special):
    a, b = matrix(150, K, 4, special=special), matrix(N, K, 5)
    assert same(product(a, b), wanted(a, b))
    assert same(product(a[:100].contiguous(), b), wanted(a, b)[:100]), "fewer rows have a schedule of their own"
    assert same(product(a, b.T.contiguous(), turned=True), wanted(a, b))
    assert same(product_over_rows(a, matrix(150, N, 6)), wanted(a.T.contiguous(), matrix(150, N, 6).T.contiguous()))


@pytest.mark.parametrize("tiles", [(16, 16), (64, 96)])
def test_bits_do_not_depend_on_tile_size(tiles):
    x, w = matrix(33, K, 1), matrix(N, K, 2, torch.float32)
    given = {"groups": 1, "N": N, "K": K, "turned": False, "whole": False}
    types = {"a_dtype": "bfloat16", "b_dtype": "float32", "out_dtype": "float32"}
    schedule = {"block_M": tiles[0], "block_N": tiles[1], "threads": 64}
    out = torch.empty(33, N)
    executable(KernelSpec.of(f"{KERNELS}:sliced_gemm", NEEDS, **given, **types, **schedule), "cpu")(x, w, out)
    assert torch.equal(out, linear(x, w, None))


def test_close_to_float64():
    x, w = torch.randn(64, K).bfloat16(), torch.randn(N, K)
    exact = x.double() @ w.double().T
    assert (linear(x, w, None).double() - exact).norm() / exact.norm() < 1e-5  # a bfloat16 product is off by 2e-3


def test_wrong_arguments_are_named():
    x, w = matrix(3, K, 1), matrix(N, K, 2, torch.float32)
    with pytest.raises(TypeError, match="weight: given bfloat16"):
        linear(x, w.bfloat16(), None)
    with pytest.raises(ValueError, match=r"x: given bfloat16\[3, 128\].*wanted bfloat16\[T, 160\]"):
        linear(x[:, :128].contiguous(), w, None)


def test_registration_passes_torchs_own_check():
    x, w = matrix(33, K, 1).requires_grad_(), torch.randn(N, K, requires_grad=True)
    torch.library.opcheck(torch.ops.kernelforge.sliced_linear, (x, w, "cpu"))
    gradients = torch.ops.kernelforge.sliced_linear_backward
    torch.library.opcheck(gradients, (torch.randn(33, N), x.detach(), w.detach(), "cpu"))
