"""Sinkhorn on a tile of matrices, tokens side by side, as TileLang macros.

A tile [n * n, tokens] holds entry (i, j) of every token's matrix in row i * n + j, so that each statement is the same
for neighbouring tokens: vector lanes on a CPU, threads of a warp, lanes of a vector core.
"""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...numerics.tile.elementary import exp, recip_positive
from ...numerics.tile.row_sum import ordered_sum
from ...numerics.tile.scalar import read


def _row(m: Any, n: int, i: Any, t: Any) -> list[Any]:
    return [m[i * n + j, t] for j in range(n)]


def _column(m: Any, n: int, j: Any, t: Any) -> list[Any]:
    return [m[i * n + j, t] for i in range(n)]


def _products(a: list[Any], b: list[Any]) -> list[Any]:
    return [x * y for x, y in zip(a, b, strict=True)]


def _row_sum(m: Any, n: int, i: Any, t: Any) -> Any:
    return ordered_sum(_row(m, n, i, t))


def _column_sum(m: Any, n: int, j: Any, t: Any) -> Any:
    return ordered_sum(_column(m, n, j, t))


@T.macro
def softmax(m: Any, n: int) -> None:
    """Rows of each matrix become their softmax."""
    for i, t in T.Parallel(n, m.shape[1]):
        for j in T.unroll(n):
            m[i * n + j, t] = read(m[i * n + j, t])
        top = T.alloc_var("float32")
        top = m[i * n, t]
        for j in T.unroll(1, n):
            top = T.if_then_else(m[i * n + j, t] > top, m[i * n + j, t], top)
        for j in T.unroll(n):
            m[i * n + j, t] = exp(m[i * n + j, t] - top)
        factor = T.alloc_var("float32")
        factor = recip_positive(_row_sum(m, n, i, t))
        for j in T.unroll(n):
            m[i * n + j, t] = m[i * n + j, t] * factor


@T.macro
def add(m: Any, n: int, eps: float) -> None:
    """Every entry plus eps."""
    for k, t in T.Parallel(n * n, m.shape[1]):
        m[k, t] = m[k, t] + T.float32(eps)


@T.macro
def normalize_rows(m: Any, n: int, eps: float) -> None:
    """Each row divided by its sum plus eps."""
    for i, t in T.Parallel(n, m.shape[1]):
        factor = T.alloc_var("float32")
        factor = recip_positive(_row_sum(m, n, i, t) + T.float32(eps))
        for j in T.unroll(n):
            m[i * n + j, t] = m[i * n + j, t] * factor


@T.macro
def normalize_columns(m: Any, n: int, eps: float) -> None:
    """Each column divided by its sum plus eps."""
    for j, t in T.Parallel(n, m.shape[1]):
        factor = T.alloc_var("float32")
        factor = recip_positive(_column_sum(m, n, j, t) + T.float32(eps))
        for i in T.unroll(n):
            m[i * n + j, t] = m[i * n + j, t] * factor


@T.macro
def sinkhorn(m: Any, n: int, iters: int, eps: float) -> None:
    """Logits become the doubly stochastic matrix (not yet canonical)."""
    softmax(m, n)
    add(m, n, eps)
    normalize_columns(m, n, eps)
    for _ in T.serial(iters - 1):
        normalize_rows(m, n, eps)
        normalize_columns(m, n, eps)


@T.macro
def _column_step(g: Any, before: Any, n: int, eps: float) -> None:
    """Gradient through the normalization of the columns of ``before``, in place; ``before`` becomes its result."""
    for j, t in T.Parallel(n, g.shape[1]):
        factor = T.alloc_var("float32")
        factor = recip_positive(_column_sum(before, n, j, t) + T.float32(eps))
        for i in T.unroll(n):
            before[i * n + j, t] = before[i * n + j, t] * factor
        dot = T.alloc_var("float32")
        dot = ordered_sum(_products(_column(g, n, j, t), _column(before, n, j, t)))
        for i in T.unroll(n):
            g[i * n + j, t] = read((g[i * n + j, t] - dot) * factor)


@T.macro
def _row_step(g: Any, after: Any, factors: Any, n: int) -> None:
    """Gradient through the normalization of rows, from its result and its factors, in place."""
    for i, t in T.Parallel(n, g.shape[1]):
        dot = T.alloc_var("float32")
        dot = ordered_sum(_products(_row(g, n, i, t), _row(after, n, i, t)))
        for j in T.unroll(n):
            g[i * n + j, t] = read((g[i * n + j, t] - dot) * factors[i, t])


@T.macro
def sinkhorn_backward(g: Any, m: Any, n: int, iters: int, eps: float) -> None:
    """Gradient of the doubly stochastic matrices becomes that of the logits (not yet canonical).

    Args:
        g: [n * n, tokens], the gradient, replaced.
        m: [n * n, tokens], the logits, overwritten.
        iters, eps: as in the reference. The matrix after each normalization of the columns is kept in a tile, the one
            after each normalization of the rows is computed again.
    """
    tokens = g.shape[1]
    iterates = T.alloc_shared((iters, n * n, tokens), "float32")
    p = T.alloc_shared((n * n, tokens), "float32")
    rows = T.alloc_shared((n * n, tokens), "float32")
    factors = T.alloc_shared((n, tokens), "float32")
    softmax(m, n)
    for k, t in T.Parallel(n * n, tokens):
        p[k, t] = m[k, t]
        g[k, t] = read(g[k, t])
    add(m, n, eps)
    for k, t in T.Parallel(n * n, tokens):
        rows[k, t] = m[k, t]
    normalize_columns(m, n, eps)
    for step in T.serial(iters - 1):
        for k, t in T.Parallel(n * n, tokens):
            iterates[step, k, t] = m[k, t]
        normalize_rows(m, n, eps)
        normalize_columns(m, n, eps)
    for k, t in T.Parallel(n * n, tokens):
        m[k, t] = rows[k, t]
    for step in T.serial(iters - 1):
        for i, t in T.Parallel(n, tokens):
            factor = T.alloc_var("float32")
            factor = recip_positive(
                ordered_sum([iterates[iters - 2 - step, i * n + j, t] for j in range(n)]) + T.float32(eps)
            )
            factors[i, t] = factor
            for j in T.unroll(n):
                rows[i * n + j, t] = iterates[iters - 2 - step, i * n + j, t] * factor
        for k, t in T.Parallel(n * n, tokens):
            iterates[iters - 2 - step, k, t] = rows[k, t]
        _column_step(g, rows, n, eps)
        for k, t in T.Parallel(n * n, tokens):
            rows[k, t] = iterates[iters - 2 - step, k, t]
        _row_step(g, rows, factors, n)
    _column_step(g, m, n, eps)
    for i, t in T.Parallel(n, tokens):
        for j in T.unroll(n):
            p[i * n + j, t] = read(p[i * n + j, t])
        dot = T.alloc_var("float32")
        dot = ordered_sum(_products(_row(g, n, i, t), _row(p, n, i, t)))
        for j in T.unroll(n):
            g[i * n + j, t] = read(g[i * n + j, t] - dot) * p[i * n + j, t]
