"""What the kernels of hyper-connections share, as TileLang macros."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...numerics.row_sum import LANES
from ...numerics.tile.elementary import sigmoid
from ...numerics.tile.row_sum import ordered_sum
from ...numerics.tile.scalar import canonical, read


def long_sum(values: list[Any]) -> Any:
    """R(n) of scalars, also of more than 32; the sign of a zero is not pinned."""
    if len(values) <= LANES:
        return ordered_sum(values)
    lanes = values[:LANES]
    for index, value in enumerate(values[LANES:]):
        lanes[index % LANES] = lanes[index % LANES] + value
    return ordered_sum(lanes)


@T.macro
def mixes(raw: Any, inverse_rms: Any, scale: Any, base: Any, n: int, mix: Any, logits: Any) -> None:
    """mix[m, t] and logits[m, t] from the projections raw[t, m] (tiles in shared memory)."""
    for m, t in T.Parallel(logits.shape[0], logits.shape[1]):
        product = T.alloc_var("float32")
        product = canonical(read(raw[t, m]) * inverse_rms[t])
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
