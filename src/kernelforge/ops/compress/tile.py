"""What the compression kernels share, as TileLang macros. Channels lie side by side, slots below one another."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...formats.tile import bf16
from ...formats.tile.integer import canonical_bits, read_bits
from ...numerics import elementary as pinned
from ...numerics.row_sum import LANES
from ...numerics.tile.elementary import exp2, recip_positive
from ..sinkhorn.tile import read

STORAGE = {"bfloat16": "uint16", "float32": "float32"}


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


def column_tile(channels: int, wanted: int) -> int:
    """Columns per tile: the largest multiple of 32 up to ``wanted`` that divides ``channels``."""
    return max(width for width in range(LANES, max(wanted, LANES) + 1, LANES) if channels % width == 0)


def lanes_of(slots: int) -> int:
    """Rows that hold the partial sums of R(slots)."""
    return min(slots, LANES)


@T.macro
def load_slots(
    kv: Any,
    gate: Any,
    bias: Any,
    old_kv: Any,
    old_gate: Any,
    first_row: Any,
    sequence: Any,
    token: Any,
    position: Any,
    column: Any,
    ratio: int,
    series: int,
    D: int,
    dtype: str,
    v: Any,
    z: Any,
) -> None:
    """v[j, c] and z[j, c] = kv and gate + bias of slot j's token, channel ``column + c``; 0 where there is no token.

    Args:
        first_row: what to add to a new token's position for its row of kv and gate.
        sequence: index in the state.
        token: absolute position of slot 0's token; negative before the sequence.
        position: absolute position of the first new token.
    """
    if token >= position:
        for j, c in T.Parallel(v.shape[0], v.shape[1]):
            # Always inside; said so that the compiler need not check every element.
            row = T.max(T.min(first_row + token + j, kv.shape[0] - 1), 0)
            at = j // ratio * D + column + c
            v[j, c] = value(kv[row, at], dtype)
            z[j, c] = value(gate[row, at], dtype) + read(bias[j % ratio, at])
    else:
        for j, c in T.Parallel(v.shape[0], v.shape[1]):
            at = j // ratio * D + column + c
            # Columns of the state: the a-series of the window before (with overlap), then the unfinished window's.
            kept = T.if_then_else(token + j >= position // ratio * ratio, (series - 1) * D + at, column + c)
            v[j, c] = T.float32(0)
            z[j, c] = T.float32(0)
            if token + j >= position:
                v[j, c] = value(kv[first_row + token + j, at], dtype)
                z[j, c] = value(gate[first_row + token + j, at], dtype) + read(bias[j % ratio, at])
            else:
                if token + j >= 0:
                    v[j, c] = value(old_kv[sequence, j % ratio, kept], dtype)
                    z[j, c] = value(old_gate[sequence, j % ratio, kept], dtype) + read(bias[j % ratio, at])


@T.macro
def weights(z: Any, first: Any, top: Any) -> None:
    """z[j, c] becomes slot j's weight, 0 for slots before ``first``; top[c] is the largest logit."""
    slots = z.shape[0]
    for c in T.Parallel(z.shape[1]):
        top[c] = z[slots - 1, c]
    for j in T.serial(slots - 1):
        if j >= first:
            for c in T.Parallel(z.shape[1]):
                top[c] = T.if_then_else(z[j, c] > top[c], z[j, c], top[c])
    for j, c in T.Parallel(slots, z.shape[1]):
        scaled = T.alloc_var("float32")
        scaled = (z[j, c] - top[c]) * T.float32(float(pinned.value(pinned.LOG2_E)))
        power = T.alloc_var("float32")
        power = exp2(scaled)
        z[j, c] = T.if_then_else((scaled < T.float32(-50)) | (j < first), T.float32(0), power)


@T.macro
def sum_slots(x: Any, lanes: Any, total: Any) -> None:
    """total[c] = R(slots) over j of x[j, c], but for the sign of a zero; ``lanes`` is overwritten."""
    slots = x.shape[0]
    rows = lanes.shape[0]
    if slots == 4:
        for c in T.Parallel(x.shape[1]):
            total[c] = (x[0, c] + x[1, c]) + (x[2, c] + x[3, c])
    else:
        for lane, c in T.Parallel(rows, x.shape[1]):
            lanes[lane, c] = x[lane, c]
            for step in T.serial(1, (slots + rows - 1) // rows):
                if step * rows + lane < slots:
                    lanes[lane, c] = lanes[lane, c] + x[step * rows + lane, c]
        for width in (16, 8, 4, 2, 1):
            if rows > width:
                for lane, c in T.Parallel(min(width, rows - width), x.shape[1]):
                    lanes[lane, c] = lanes[lane, c] + lanes[lane + width, c]
        for c in T.Parallel(x.shape[1]):
            total[c] = lanes[0, c]


@T.macro
def pool(v: Any, z: Any, first: Any, top: Any, lanes: Any, share: Any, mean: Any) -> None:
    """mean[c] = the weighted mean of v[:, c] under the logits z[:, c]; z becomes the weights, v the terms, and share[c]
    one over the sum of the weights.

    Args:
        v, z: float32 [slots, columns]; slots before ``first`` have no token.
        top, lanes, share, mean: float32 [columns], [lanes, columns], [columns], [columns].
    """
    weights(z, first, top)
    sum_slots(z, lanes, share)
    for j, c in T.Parallel(v.shape[0], v.shape[1]):
        v[j, c] = z[j, c] * v[j, c]
    sum_slots(v, lanes, mean)
    for c in T.Parallel(v.shape[1]):
        share[c] = recip_positive(share[c])
        mean[c] = read(read(mean[c]) * share[c])
