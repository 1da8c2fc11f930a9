"""Conformance cases of Sinkhorn normalization, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ...runtime import KernelSpec, schedule
from ..spec import Arrays, Case, seeded
from . import reference

DATA = ("normal", "bits", "special", "zeros", "huge", "tiny")
"""``bits`` are uniformly random bit patterns; ``special`` puts infinities, NaN and masks among ordinary logits."""
_SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 2.0**-149, -(2.0**-50), 3e38, -3e38, 88.0, -100.0)


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: the models' matrices, every kind of data. ``full``: all sizes, limits of ``iters`` and ``eps``."""
    problems = [(4, 20, 1e-6)]
    if size == "full":
        problems += [(3, 3, 2.0**-20)]
        problems += [(n, iters, eps) for n in range(2, 9) for iters, eps in ((1, 1e-6), (20, 1.0))]
        problems += [(4, 100, 1e-6), (8, 100, 1e-6)]
    for n, iters, eps in problems:
        for tokens, kinds in ((0, ("normal",)), (1, ("normal",)), (37, DATA)):
            for data in kinds:
                name = f"{n}x{n}/iters{iters}/eps{eps:.3g}/{tokens}/{data}"
                given = (name, seed, n, tokens, data, iters, eps)
                yield Case(name, functools.partial(_expected, *given), functools.partial(_run, *given))


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """DeepSeek-V4's: four streams, 20 iterations."""
    from .op import KERNELS, NEEDS

    found = {}
    for name, backward in (("sinkhorn", False), ("sinkhorn_backward", True)):
        tiles = schedule("sinkhorn", device, n=4, backward=backward, words=320)
        found[name] = KernelSpec.of(f"{KERNELS}:{name}", NEEDS, n=4, iters=20, eps=1e-6, **tiles)
    return found


@functools.lru_cache(maxsize=128)
def operands(name: str, seed: int, n: int, tokens: int, data: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and the gradient of the result, float32 [tokens, n, n]."""
    draw = seeded(seed, name)
    shape = (tokens, n, n)
    size = {"zeros": 0.0, "huge": 1e30, "tiny": 2.0**-48}.get(data, 3.0)
    logits, grad = ((draw.standard_normal(shape) * size).astype(np.float32) for _ in range(2))
    if data == "bits":
        logits, grad = (
            draw.integers(0, 1 << 32, shape, dtype=np.uint64).astype(np.uint32).view(np.float32) for _ in range(2)
        )
    if data == "special":
        for i, value in enumerate(_SPECIAL):
            logits.reshape(tokens, -1)[i, i % (n * n)] = value
            grad.reshape(tokens, -1)[i + len(_SPECIAL), i % (n * n)] = value
        logits[-1, 0] = -np.inf  # a row with everything masked
        logits[-2, :, 0] = -np.inf
    return logits, grad


def _expected(name: str, seed: int, n: int, tokens: int, data: str, iters: int, eps: float) -> Arrays:
    logits, grad = operands(name, seed, n, tokens, data)
    return {
        "result": reference.sinkhorn(logits, iters, eps),
        "logits_grad": reference.sinkhorn_backward(grad, logits, iters, eps),
    }


def _run(name: str, seed: int, n: int, tokens: int, data: str, iters: int, eps: float, device: str) -> Arrays:
    import torch

    from ..support import home_of
    from .op import sinkhorn

    logits, grad = (torch.from_numpy(x).to(home_of(device)) for x in operands(name, seed, n, tokens, data))
    result = sinkhorn(logits.requires_grad_(), iters, eps, backend=device)
    (logits_grad,) = torch.autograd.grad(result, logits, grad)
    return {"result": result.detach().cpu().numpy(), "logits_grad": logits_grad.cpu().numpy()}
