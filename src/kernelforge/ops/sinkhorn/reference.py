"""Sinkhorn normalization in NumPy: these functions define the bits.

Matrices are [..., n, n], n at most 8. R(n) is the row sum of contract C7, ``recip`` and ``exp`` are those of C6. With
eps in [2^-20, 1] every entry of every iterate is at least 2^-50 (``docs/numerics.md``), so no product or sum below is
subnormal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...formats.mx import flush as read
from ...numerics.elementary import exp, recip_positive
from ...numerics.row_sum import row_sum

Float32 = NDArray[np.float32]


class _Softmax(NamedTuple):
    p: Float32
    start: Float32
    """p + eps."""


def _softmax(logits: Float32, eps: np.float32) -> _Softmax:
    x = read(logits)
    top = x[..., 0]
    for j in range(1, x.shape[-1]):
        top = np.where(x[..., j] > top, x[..., j], top)
    e = exp(x - top[..., None])
    p = e * recip_positive(row_sum(e))[..., None]
    return _Softmax(p, p + eps)


def _columns(m: Float32) -> Float32:
    return row_sum(np.ascontiguousarray(np.swapaxes(m, -1, -2)))


def _row_factor(m: Float32, eps: np.float32) -> Float32:
    return recip_positive(row_sum(m) + eps)[..., :, None]


def _column_factor(m: Float32, eps: np.float32) -> Float32:
    return recip_positive(_columns(m) + eps)[..., None, :]


def _column_iterates(start: Float32, iters: int, eps: np.float32) -> list[Float32]:
    """The matrix after each normalization of the columns."""
    found = [start * _column_factor(start, eps)]
    for _ in range(iters - 1):
        rows = found[-1] * _row_factor(found[-1], eps)
        found.append(rows * _column_factor(rows, eps))
    return found


def sinkhorn(logits: Float32, iters: int = 20, eps: float = 1e-6) -> Float32:
    """Softmax over the last axis plus eps; columns divided by (sum + eps); then iters - 1 times rows and columns.

    Args:
        logits: float32 [..., n, n].
    """
    with np.errstate(all="ignore"):
        small = np.float32(eps)
        return bf16.canonical(_column_iterates(_softmax(logits, small).start, iters, small)[-1])


def sinkhorn_backward(grad: Float32, logits: Float32, iters: int = 20, eps: float = 1e-6) -> Float32:
    """Gradient of the logits; the iterates are computed again.

    For y = x * f with f = recip(sum(x) + eps), dx = (dy - sum(dy * y)) * f. Gradients are read (2^-50) after each step.
    """
    with np.errstate(all="ignore"):
        small = np.float32(eps)
        p, start = _softmax(logits, small)
        iterates = _column_iterates(start, iters, small)
        g = read(grad)
        for before in reversed(iterates[:-1]):
            row_factor = _row_factor(before, small)
            rows = before * row_factor
            g = _column_step(g, rows, small)
            g = read((g - row_sum(g * rows)[..., None]) * row_factor)
        g = _column_step(g, start, small)
        p = read(p)
        return bf16.canonical(read(g - row_sum(g * p)[..., None]) * p)


def _column_step(g: Float32, before: Float32, eps: np.float32) -> Float32:
    """Gradient through the normalization of the columns of ``before``."""
    factor = _column_factor(before, eps)
    after = before * factor
    return read((g - _columns(g * after)[..., None, :]) * factor)
