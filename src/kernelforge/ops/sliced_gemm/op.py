"""Products of BF16 and float32 matrices with pinned bits: what other ops multiply by, and a linear layer."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...backends import Executable
from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, schedule
from ..support import LIBRARY, Meta, choose_device, define, expect, meta

Tensor = torch.Tensor
NEEDS = frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32})
KERNELS = "kernelforge.ops.sliced_gemm.kernel"
DTYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


MOST_TOKENS = 256
"""A schedule does not tell more rows from as many."""


@functools.lru_cache(maxsize=4096)
def _compiled(kernel: str, device: torch.device, backend: str | None, tokens: int = 0, **problem: Any) -> Executable:
    where = choose_device(backend, device)
    tiles = schedule("sliced_gemm", where, kernel=kernel, tokens=tokens, **problem)
    return executable(KernelSpec.of(f"{KERNELS}:{kernel}", NEEDS, **problem, **tiles), where)


def _types(a: Tensor, b: Tensor, out: torch.dtype) -> dict[str, str]:
    return {"a_dtype": DTYPES[a.dtype], "b_dtype": DTYPES[b.dtype], "out_dtype": DTYPES[out]}


def product(
    a: Tensor,
    b: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    groups: int = 1,
    turned: bool = False,
    whole: bool = False,
    backend: str | None = None,
) -> Tensor:
    """A B^T by contract C4, for each group of columns of A with its rows of B.

    Args:
        a: [M, groups * K], ``bfloat16`` or float32, contiguous.
        b: [groups * N, K]; [groups * K, N] where ``turned``, for A B.
        dtype: of the result.
        groups: of columns.
        turned: as above.
        whole: contractions up to 512 (256 of float32 with float32) are one chunk; else all are cut into 128s.
        backend: as in every op.

    Returns:
        [M, groups * N].
    """
    K = a.shape[1] // groups
    N = b.shape[1] if turned else b.shape[0] // groups
    out = a.new_zeros((a.shape[0], groups * N), dtype=dtype)
    if out.numel() and K:
        extents = {"groups": groups, "N": N, "K": K, "turned": turned, "whole": whole}
        tokens = min(1 << (a.shape[0] - 1).bit_length(), MOST_TOKENS)
        _compiled("sliced_gemm", a.device, backend, tokens, **extents, **_types(a, b, dtype))(a, b, out)
    return out


def product_over_rows(
    a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32, *, groups: int = 1, backend: str | None = None
) -> Tensor:
    """A^T B by contract C4, summed over rows in chunks of 128, for each group of columns.

    Args:
        a: [rows, groups * M], ``bfloat16`` or float32, contiguous.
        b: [rows, groups * N].
        dtype, groups, backend: as in :func:`product`.

    Returns:
        [groups * M, N].
    """
    M, N = a.shape[1] // groups, b.shape[1] // groups
    out = a.new_zeros((groups * M, N), dtype=dtype)
    if out.numel() and a.shape[0]:
        extents = {"groups": groups, "M": M, "N": N}
        _compiled("sliced_gemm_over_rows", a.device, backend, **extents, **_types(a, b, dtype))(a, b, out)
    return out


@functools.lru_cache(maxsize=1024)
def _check(x: Meta, weight: Meta, backend: str | None) -> None:
    weight = expect("weight", weight, (torch.float32,), ("N", "K"), x.device)
    expect("x", x, (torch.bfloat16,), ("T", weight.shape[1]), x.device)
    choose_device(backend, x.device)


def _linear_impl(x: Tensor, weight: Tensor, backend: str | None) -> Tensor:
    described: list[Any] = [meta(x), meta(weight)]
    _check(*described, backend)
    return product(x, weight, backend=backend)


def _linear_fake(x: Tensor, weight: Tensor, backend: str | None) -> Tensor:
    return weight.new_empty((x.shape[0], weight.shape[0]))


def _linear_backward_impl(grad: Tensor, x: Tensor, weight: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    described: list[Any] = [meta(x), meta(weight)]
    _check(*described, backend)
    expect("grad", meta(grad), (torch.float32,), (x.shape[0], weight.shape[0]), x.device)
    grad_x = product(grad, weight, torch.bfloat16, turned=True, backend=backend)
    # Rows that are cut as they come are the BF16 ones: two slices against three.
    return grad_x, product_over_rows(x, grad, backend=backend).T.contiguous()


def _linear_backward_fake(grad: Tensor, x: Tensor, weight: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


linear = define("sliced_linear(Tensor x, Tensor weight, str? backend) -> Tensor", _linear_impl, _linear_fake)
"""float32 [T, N] = x [T, K] weight [N, K]^T of ``bfloat16`` x and float32 weight, in chunks of 128; differentiable."""

linear_backward = define(
    "sliced_linear_backward(Tensor grad, Tensor x, Tensor weight, str? backend) -> (Tensor, Tensor)",
    _linear_backward_impl,
    _linear_backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.backend = inputs
    ctx.save_for_backward(x, weight)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*linear_backward(grad.contiguous(), *ctx.saved_tensors, ctx.backend), None)


torch.library.register_autograd("kernelforge::sliced_linear", _gradient, setup_context=_save, lib=LIBRARY)
