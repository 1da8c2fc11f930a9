"""Sinkhorn normalization: public function, checks, torch registration, autograd."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...backends import Executable
from ...backends.capabilities import FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, schedule
from ..support import LIBRARY, Meta, choose_device, define, expect, meta, require_numerics, require_tensor

NEEDS = frozenset({FP32_IEEE, INT32})
KERNELS = "kernelforge.ops.sinkhorn.kernel"
STREAMS = (2, 8)
SMALLEST_EPS, LARGEST_EPS = 2.0**-20, 1.0
LARGEST_ITERS = 100


def sinkhorn(
    logits: torch.Tensor, iters: int = 20, eps: float = 1e-6, *, numerics: str = "exact", backend: str | None = None
) -> torch.Tensor:
    """Doubly stochastic matrices from logits (Sinkhorn and Knopp, 1967; as DeepSeek-V4 uses it).

    Softmax over the last axis plus ``eps``; columns (axis -2) divided by their sum plus ``eps``; then ``iters - 1``
    times rows and columns. Differentiable; the backward pass computes the iterates again.

    Args:
        logits: float32 [..., n, n], 2 <= n <= 8, contiguous.
        iters: 1 to 100.
        eps: 2^-20 (9.5e-7) to 1.
        numerics: ``"exact"``, the contract of ``docs/numerics.md``.
        backend: None for the tensor's own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        float32, the shape of ``logits``. A matrix with a NaN, +Inf or a row of -Inf is NaN throughout.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    require_numerics("sinkhorn", numerics)
    require_tensor("logits", logits)
    result: torch.Tensor = _forward(logits, iters, eps, backend)
    return result


def check_iterations(iters: int, eps: float) -> None:
    """Raise ``ValueError`` unless Sinkhorn's parameters are within the proved range."""
    if isinstance(iters, bool) or not isinstance(iters, int) or not 1 <= iters <= LARGEST_ITERS:
        raise ValueError(f"iters: given {iters!r}, wanted an integer from 1 to {LARGEST_ITERS}")
    check_eps("eps", eps)


def check_eps(name: str, eps: float) -> None:
    """Raise ``ValueError`` unless ``eps`` keeps every intermediate value away from zero."""
    if not SMALLEST_EPS <= eps <= LARGEST_EPS:
        raise ValueError(f"{name}: given {eps!r}, wanted a number from 2^-20 (9.5e-7) to 1")


def check_streams(name: str, given: Meta, n: int) -> None:
    """Raise ``ValueError`` unless there are 2 to 8 streams."""
    if not STREAMS[0] <= n <= STREAMS[1]:
        raise ValueError(f"{name}: given {given}, so n = {n}; n must be from {STREAMS[0]} to {STREAMS[1]}")


@functools.lru_cache(maxsize=1024)
def _plan(logits: Meta, iters: int, eps: float, backend: str | None, backward: bool) -> Executable | None:
    if len(logits.shape) < 2:
        raise ValueError(f"logits: given {logits}, wanted float32[..., n, n]")
    n = logits.shape[-1]
    expect("logits", logits, (torch.float32,), (*logits.shape[:-2], n, n), logits.device)
    check_streams("logits", logits, n)
    check_iterations(iters, eps)
    device = choose_device(backend, logits.device)
    if logits.shape.numel() == 0:
        return None
    tiles = schedule("sinkhorn", device, n=n, backward=backward, words=iters * n * n)
    name = "sinkhorn_backward" if backward else "sinkhorn"
    return executable(KernelSpec.of(f"{KERNELS}:{name}", NEEDS, n=n, iters=iters, eps=eps, **tiles), device)


def _forward_impl(logits: torch.Tensor, iters: int, eps: float, backend: str | None) -> torch.Tensor:
    run = _plan(meta(logits), iters, eps, backend, False)
    result = torch.empty_like(logits)
    if run is not None:
        n = logits.shape[-1]
        run(logits.view(-1, n * n), result.view(-1, n * n))
    return result


def _forward_fake(logits: torch.Tensor, iters: int, eps: float, backend: str | None) -> torch.Tensor:
    return torch.empty_like(logits)


def _backward_impl(
    grad: torch.Tensor, logits: torch.Tensor, iters: int, eps: float, backend: str | None
) -> torch.Tensor:
    run = _plan(meta(logits), iters, eps, backend, True)
    expect("grad", meta(grad), (torch.float32,), tuple(logits.shape), logits.device)
    result = torch.empty_like(logits)
    if run is not None:
        n = logits.shape[-1]
        run(grad.view(-1, n * n), logits.view(-1, n * n), result.view(-1, n * n))
    return result


def _backward_fake(
    grad: torch.Tensor, logits: torch.Tensor, iters: int, eps: float, backend: str | None
) -> torch.Tensor:
    return torch.empty_like(logits)


_forward = define("sinkhorn(Tensor logits, int iters, float eps, str? backend) -> Tensor", _forward_impl, _forward_fake)
_backward = define(
    "sinkhorn_backward(Tensor grad, Tensor logits, int iters, float eps, str? backend) -> Tensor",
    _backward_impl,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    logits, *ctx.parameters = inputs
    ctx.save_for_backward(logits)


def _gradient(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (logits,) = ctx.saved_tensors
    return _backward(grad.contiguous(), logits, *ctx.parameters), None, None, None


torch.library.register_autograd("kernelforge::sinkhorn", _gradient, setup_context=_save, lib=LIBRARY)
