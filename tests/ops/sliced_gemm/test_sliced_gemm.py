"""Products by exact dots: the reference's bits for every layout and type, whatever the tiles; close to float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from own_process import run_with_isa

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


def edge_rows(rows: int, K: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Rows of every kind that the definition treats by itself, in turn, beside heavy-tailed ones."""
    x = np.random.default_rng(seed).standard_t(3, (rows, K)).astype(np.float32)
    kinds = [
        lambda row: row.fill(0),
        lambda row: row.fill(3.3895314e38),  # every slice at its largest
        lambda row: row.fill(-(2.0**-50)),  # the smallest that is read
        lambda row: row.fill(2.0**-51),  # read as zero
        lambda row: row.put(K // 2, np.nan),
        lambda row: row.put(K - 1, -np.inf),
        lambda row: row.fill(1.9921875),  # significand 255: one exponent more
        lambda row: row.fill(np.array(0x3FFEFEFF, np.uint32).view(np.float32)),  # the same of three slices
        lambda row: np.ldexp(row, -np.arange(K) % 40, out=row),
        lambda row: row.fill(1e-45),
    ]
    for i, row in enumerate(x):
        if i % 2:
            kinds[i // 2 % len(kinds)](row)
    return torch.from_numpy(x).to(dtype)


# Tails of rows, columns and chunks; one chunk and several, in one piece and in more; rows that do and do not stay cut.
SHAPES = ((1, 9, 512), (2, 8, 32), (3, 40, 160), (5, 23, 77), (29, 24, 640), (70, 19, 1100), (33, 66, 4104), (0, 8, 32))


def rows_have_the_references_bits(shapes=SHAPES) -> None:
    for M, N, K_ in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            a, b = edge_rows(M, K_, 7), edge_rows(N, K_, 8, dtype)
            for whole in (True, False):
                step = K_ if whole and K_ <= 512 else 128
                expected = reference(
                    a.float().numpy(), b.float().numpy(), b_slices=2 + (dtype == torch.float32), step=step
                )
                assert same(product(a, b, whole=whole), expected), (M, N, K_, dtype, whole)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512bf16", "avx512vnni", "amx", "neon"])
def test_every_instruction_set_gives_the_references_bits(isa):
    """The choice is made once per process, so each runs in one of its own."""
    program = "import test_sliced_gemm as t; t.rows_have_the_references_bits()"
    run_with_isa(isa, program, __file__)


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
