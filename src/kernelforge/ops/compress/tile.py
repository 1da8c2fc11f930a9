"""What the compression kernels share, as TileLang macros. Channels lie side by side, slots below one another."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...numerics import elementary as pinned
from ...numerics.row_sum import LANES
from ...numerics.tile.elementary import exp2_nonpositive, recip_positive, rsqrt
from ...numerics.tile.row_sum import row_sum
from ...numerics.tile.scalar import read, value


@T.macro
def load_bias(position_bias: Any, column: Any, ratio: int, D: int, bias: Any) -> None:
    """bias[j, c] = the bias of slot j, channel ``column + c``, as it is read."""
    for j, c in T.Parallel(bias.shape[0], bias.shape[1]):
        bias[j, c] = read(position_bias[j % ratio, j // ratio * D + column + c])


@T.macro
def load_new_slots(tokens: Any, where: Any, ratio: int, D: int, dtype: str, v: Any, z: Any) -> None:
    """:func:`load_slots` where every slot from a first one on has a new token; v is 0 in those before.

    Args:
        tokens: kv, gate, and the bias from :func:`load_bias`.
        where: the row of slot 0's token in kv and gate, the first slot with a token, the first channel.
    """
    kv, gate, bias = tokens
    row, first, column = where
    for j, c in T.Parallel(v.shape[0], v.shape[1]):
        # Always inside from ``first`` on; said so that the compiler need not check every element.
        inside = T.max(T.min(row + j, kv.shape[0] - 1), 0)
        at = j // ratio * D + column + c
        v[j, c] = T.if_then_else(j < first, T.float32(0), value(kv[inside, at], dtype))
        z[j, c] = value(gate[inside, at], dtype) + bias[j, c]


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
        bias: float32 [slots, columns], from :func:`load_bias`.
        first_row: what to add to a new token's position for its row of kv and gate.
        sequence: index in the state.
        token: absolute position of slot 0's token; negative before the sequence.
        position: absolute position of the first new token.
    """
    if token >= position:
        load_new_slots((kv, gate, bias), (first_row + token, 0, column), ratio, D, dtype, v, z)
    else:
        for j, c in T.Parallel(v.shape[0], v.shape[1]):
            at = j // ratio * D + column + c
            # Columns of the state: series a of the window before (with overlap), then the unfinished window's.
            kept = T.if_then_else(token + j >= position // ratio * ratio, (series - 1) * D + at, column + c)
            v[j, c] = T.float32(0)
            z[j, c] = T.float32(0)
            if token + j >= position:
                v[j, c] = value(kv[first_row + token + j, at], dtype)
                z[j, c] = value(gate[first_row + token + j, at], dtype) + bias[j, c]
            else:
                if token + j >= 0:
                    v[j, c] = value(old_kv[sequence, j % ratio, kept], dtype)
                    z[j, c] = value(old_gate[sequence, j % ratio, kept], dtype) + bias[j, c]


@T.macro
def largest(z: Any, first: Any, top: Any) -> None:
    """top[c] = the largest of z[:, c] from slot ``first`` on; the last slot always has a token."""
    slots = z.shape[0]
    for c in T.Parallel(z.shape[1]):
        top[c] = z[slots - 1, c]
    for j in T.serial(slots - 1):
        if j >= first:
            for c in T.Parallel(z.shape[1]):
                top[c] = T.if_then_else(z[j, c] > top[c], z[j, c], top[c])


@T.macro
def weight(z: Any, top: Any) -> Any:
    """2^((z - top) * log2 e), or +0 below 2^-50; a NaN for a NaN. No z is above top."""
    scaled = T.alloc_var("float32")
    scaled = (z - top) * T.float32(float(pinned.value(pinned.LOG2_E)))
    power = T.alloc_var("float32")
    power = exp2_nonpositive(scaled)
    result = T.alloc_var("float32")
    result = T.if_then_else(scaled < T.float32(-50), T.float32(0), power)
    return result


@T.macro
def sum_slots(x: Any, total: Any) -> None:
    """total[c] = R(slots) over j of x[j, c], but for the sign of a zero; x is overwritten."""
    slots = x.shape[0]
    rows = min(int(slots), LANES)
    if slots == 4:
        for c in T.Parallel(x.shape[1]):
            total[c] = (x[0, c] + x[1, c]) + (x[2, c] + x[3, c])
    else:
        for step in T.serial(1, (slots + rows - 1) // rows):
            for lane, c in T.Parallel(rows, x.shape[1]):
                if step * rows + lane < slots:
                    x[lane, c] = x[lane, c] + x[step * rows + lane, c]
        for width in (16, 8, 4, 2, 1):
            if rows > width:
                for lane, c in T.Parallel(min(width, rows - width), x.shape[1]):
                    x[lane, c] = x[lane, c] + x[lane + width, c]
        for c in T.Parallel(x.shape[1]):
            total[c] = x[0, c]


@T.macro
def pool(v: Any, z: Any, first: Any, top: Any, share: Any, mean: Any) -> None:
    """mean[c] = the weighted mean of v[:, c] under the logits z[:, c], share[c] = one over the sum of the weights.

    Args:
        v, z: float32 [slots, columns], overwritten; slots before ``first`` have no token.
        top, share, mean: float32 [columns]; top becomes the largest logit.
    """
    largest(z, first, top)
    for j, c in T.Parallel(v.shape[0], v.shape[1]):
        z[j, c] = T.if_then_else(j < first, T.float32(0), weight(z[j, c], top[c]))
        v[j, c] = z[j, c] * v[j, c]
    sum_slots(z, share)
    sum_slots(v, mean)
    for c in T.Parallel(v.shape[1]):
        share[c] = recip_positive(share[c])
        mean[c] = read(read(mean[c]) * share[c])


@T.macro
def inverse_rms(x: Any, square: Any, inverse: Any, eps: float) -> None:
    """inverse[0] = 1 / the root mean square of x[0, :] (float32 [1, D]); ``square`` is overwritten."""
    for c in T.Parallel(x.shape[1]):
        square[0, c] = x[0, c] * x[0, c]
    row_sum(square, inverse)
    for k in T.Parallel(1):
        inverse[k] = rsqrt(inverse[k] * T.float32(1 / int(x.shape[1])) + T.float32(eps))


@T.macro
def turn(x: Any, cos: Any, sin: Any, position: Any, sense: float, angles: Any) -> None:
    """Turn the trailing channels of x (float32 [1, D]) by the angles of a position, in pairs; ``sense`` is 1 or -1.

    ``angles`` (float32 [3, 2 * pairs]) is overwritten. Positions beyond the table take its last row. Every channel is
    the sum of two products: written pair by pair, as a difference and a sum, GCC fuses them whatever it is told.
    """
    channels = angles.shape[1]
    for c in T.Parallel(channels):
        row = T.min(position, cos.shape[0] - 1)
        angles[0, c] = read(cos[row, c // 2])
        angles[1, c] = read(sin[row, c // 2]) * T.if_then_else(c % 2 == 1, T.float32(sense), T.float32(-sense))
        angles[2, c] = x[0, x.shape[1] - channels + c + 1 - c % 2 * 2]
    for c in T.Parallel(channels):
        at = x.shape[1] - channels + c
        x[0, at] = x[0, at] * angles[0, c] + angles[2, c] * angles[1, c]
    for c in T.Parallel(x.shape[1]):
        x[0, c] = read(x[0, c])
