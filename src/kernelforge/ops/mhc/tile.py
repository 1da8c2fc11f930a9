"""What the kernels of hyper-connections share, as TileLang macros."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...formats.tile import bf16
from ...formats.tile.integer import canonical_bits, read_bits
from ...numerics.row_sum import LANES
from ...numerics.tile.elementary import sigmoid
from ..sinkhorn import tile as sinkhorn_tile
from ..sinkhorn.tile import ordered_sum, read

STORAGE = {"bfloat16": "uint16", "float32": "float32"}


def column_tile(channels: int, wanted: int) -> int:
    """Columns per tile: the largest multiple of 32 up to ``wanted`` that divides ``channels``."""
    return max(width for width in range(LANES, max(wanted, LANES) + 1, LANES) if channels % width == 0)


def long_sum(values: list[Any]) -> Any:
    """R(n) of scalars, also of more than 32; the sign of a zero is not pinned."""
    if len(values) <= LANES:
        return ordered_sum(values)
    lanes = values[:LANES]
    for index, value in enumerate(values[LANES:]):
        lanes[index % LANES] = lanes[index % LANES] + value
    return ordered_sum(lanes)


@T.macro
def value(stored: Any, dtype: str) -> Any:
    """A stored element as the contract reads it, float32."""
    bits = T.alloc_var("int32")
    bits = bf16.float32_bits(T.cast(stored, "int32")) if dtype == "bfloat16" else T.reinterpret(stored, "int32")
    result = T.alloc_var("float32")
    result = T.reinterpret(read_bits(bits), "float32")
    return result


@T.macro
def stored(x: Any, dtype: str) -> Any:
    """A float32 as an op stores it in ``dtype``."""
    bits = T.alloc_var("int32")
    bits = T.reinterpret(x, "int32")
    if dtype == "bfloat16":
        code = T.alloc_var("uint16")
        code = T.cast(bf16.encode(bits), "uint16")
        return code
    else:
        result = T.alloc_var("float32")
        result = T.reinterpret(canonical_bits(bits), "float32")
        return result


@T.macro
def mixes(raw: Any, inverse_rms: Any, scale: Any, base: Any, n: int, mix: Any, logits: Any) -> None:
    """mix[m, t] and logits[m, t] from the projections raw[t, m] (tiles in shared memory)."""
    for m, t in T.Parallel(logits.shape[0], logits.shape[1]):
        product = T.alloc_var("float32")
        product = sinkhorn_tile.canonical(read(raw[t, m]) * inverse_rms[t])
        mix[m, t] = read(product)
        factor = T.alloc_var("float32")
        factor = read(scale[T.min(m // n, scale.shape[0] - 1)])
        logits[m, t] = mix[m, t] * factor + read(base[m])


@T.macro
def gates(logits: Any, n: int, head: bool, eps: float, pre: Any, post: Any) -> None:
    """pre[j, t] and post[j, t]."""
    for j, t in T.Parallel(n, pre.shape[1]):
        pre[j, t] = sigmoid(logits[j, t]) + T.float32(eps)
        if not head:
            post[j, t] = T.float32(2) * sigmoid(logits[n + j, t])
