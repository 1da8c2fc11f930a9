"""Sinkhorn on a tile of matrices, tokens side by side, as TileLang macros.

A tile [n * n, tokens] holds entry (i, j) of every token's matrix in row i * n + j, so that each statement is the same
for neighbouring tokens: vector lanes on a CPU, threads of a warp, lanes of a vector core.
"""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...formats.tile.integer import canonical_bits, read_bits
from ...numerics.tile.elementary import exp, recip_positive
from ...numerics.tile.row_sum import _ordered_sum as ordered_sum


def bits(x: Any) -> Any:
    """Bits of a float32."""
    return T.reinterpret(x, "int32")


@T.macro
def read(x: Any) -> Any:
    """A float32 as the contract reads it: magnitudes below 2^-50 are +0."""
    value = T.alloc_var("int32")
    value = T.reinterpret(x, "int32")
    result = T.alloc_var("float32")
    result = T.reinterpret(read_bits(value), "float32")
    return result


@T.macro
def canonical(x: Any) -> Any:
    """A float32 as an op writes it: NaN is 0x7FC00000, -0 is +0."""
    value = T.alloc_var("int32")
    value = T.reinterpret(x, "int32")
    result = T.alloc_var("float32")
    result = T.reinterpret(canonical_bits(value), "float32")
    return result


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
