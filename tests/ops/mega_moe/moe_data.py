"""Operands of a small mixture of experts, and its reference's results."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kernelforge.formats import mx
from kernelforge.ops.mega_moe import reference

HIDDEN, INTER, EXPERTS = 96, 96, 5
LIMIT = 1.5
"""Low, so that the clamps are met; all of them as in the conformance cases, so that they share kernels."""


class Layer(NamedTuple):
    """Packed expert weights, as NumPy arrays."""

    w1: NDArray[np.uint8]
    w1_scale: NDArray[np.uint8]
    w2: NDArray[np.uint8]
    w2_scale: NDArray[np.uint8]


def layer(draw: np.random.Generator, experts: int = EXPERTS, hidden: int = HIDDEN, inter: int = INTER) -> Layer:
    """Random experts of ordinary size."""
    w1 = draw.standard_normal((experts, 2 * inter, hidden)).astype(np.float32) * np.float32(2 * hidden**-0.5)
    w2 = draw.standard_normal((experts, hidden, inter)).astype(np.float32) * np.float32(inter**-0.5)
    return Layer(*mx.quantize_mxfp4(w1), *mx.quantize_mxfp4(w2))


def rows(draw: np.random.Generator, n: int, hidden: int = HIDDEN) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MXFP8 rows: codes and scale bytes."""
    return mx.quantize_mxfp8(draw.standard_normal((n, hidden)).astype(np.float32))


def choices(draw: np.random.Generator, tokens: int, slots: int, experts: int, dropped: float) -> NDArray[np.int32]:
    """Distinct experts for each token, some dropped."""
    keys = draw.random((tokens, experts))
    chosen = np.argsort(keys, -1)[:, :slots].astype(np.int32)
    return np.where(draw.random((tokens, slots)) < dropped, np.int32(-1), chosen)


def tensors(*arrays: NDArray[Any]) -> list[torch.Tensor]:
    """CPU tensors of arrays."""
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def bits(tensor: torch.Tensor) -> NDArray[Any]:
    """A result as the reference has it."""
    tensor = tensor.cpu()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def assert_same_bits(found: torch.Tensor, expected: NDArray[Any]) -> None:
    """Equal in every bit, NaN and signs of zeros included."""
    have = bits(found)
    assert have.dtype == expected.dtype
    assert have.shape == expected.shape
    assert have.tobytes() == expected.tobytes(), np.flatnonzero(have != expected)[:5]


def offsets_of(counts: list[int]) -> NDArray[np.int32]:
    """Offsets from rows per expert."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


__all__ = [
    "EXPERTS",
    "HIDDEN",
    "INTER",
    "LIMIT",
    "Layer",
    "assert_same_bits",
    "bits",
    "choices",
    "layer",
    "offsets_of",
    "reference",
    "rows",
    "tensors",
]
