"""Conformance cases of MXFP4 to FP8, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ...runtime import KernelSpec, schedule
from ..spec import Arrays, Case, seeded
from . import reference

GROUPS = ((1, 128), (128, 128))
SPREADS = (0, 14, 40, 256)
"""Scale bytes of a matrix lie within so many powers of two of each other: exact, at the limit, lossy, any byte."""


def cases(seed: int, size: str) -> Iterator[Case]:
    """Both groups with partial ones at the edges; scales alike, at the limit of exactness, beyond it, and any."""
    for group in GROUPS:
        for N, K in ((130, 160),) if size == "ci" else ((1, 32), (130, 160), (256, 512), (3, 4128)):
            for spread in SPREADS:
                at = f"{group[0]}x{group[1]}/{N}x{K}/spread{spread}"
                yield Case(
                    at,
                    functools.partial(_expected, at, seed, group, N, K, spread),
                    functools.partial(_run, at, seed, group, N, K, spread),
                )


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """One kernel per group shape, at a decoder's width."""
    from .op import BUILDER, NEEDS

    found = {}
    for rows, columns in GROUPS:
        tiles = schedule("fp4_to_fp8", device, M=4096, K=4096, group_rows=rows)
        found[f"{rows}x{columns}"] = KernelSpec.of(BUILDER, NEEDS, K=4096, group_rows=rows, **tiles)
    return found


@functools.lru_cache(maxsize=32)
def _weights(at: str, seed: int, N: int, K: int, spread: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    draw = seeded(seed, at)
    low = 0 if spread == 256 else 120
    scale = draw.integers(low, low + max(spread, 1) + (spread == 14), (N, K // 32))
    return draw.integers(0, 256, (N, K // 2)).astype(np.uint8), np.minimum(scale, 255).astype(np.uint8)


def _expected(at: str, seed: int, group: tuple[int, int], N: int, K: int, spread: int) -> Arrays:
    codes, scale = reference.fp4_to_fp8(*_weights(at, seed, N, K, spread), group, "round")
    return {"codes": codes, "scale": scale}


def _run(at: str, seed: int, group: tuple[int, int], N: int, K: int, spread: int, device: str) -> Arrays:
    import torch

    from ... import backends
    from .op import fp4_to_fp8

    owner, chosen = backends.device(device)
    home = "cpu" if chosen.virtual else owner.tensor_device
    packed, scale = (torch.from_numpy(x).to(home) for x in _weights(at, seed, N, K, spread))
    codes, group_scale = fp4_to_fp8(packed, scale, group, on_loss="round", backend=device)
    return {"codes": codes.view(torch.uint8).cpu().numpy(), "scale": group_scale.cpu().numpy()}
