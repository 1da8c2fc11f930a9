"""The weighted mean over the slots of one entry where every slot has a new token, straight from kv and gate.

The bits are those of ``tile.load_new_slots`` and ``tile.pool``. These write every logit and weight down and read it
again; here a channel's slots stay in registers, all of them if they are few, else those of one lane. A backend may take
it whole: the composite ``weighted_mean``.
"""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...formats.tile.integer import MAGNITUDE, SMALLEST_READ
from ...numerics.row_sum import LANES
from ...numerics.tile.composite import composite
from ...numerics.tile.elementary import recip_positive
from ...numerics.tile.row_sum import ordered_sum
from ...numerics.tile.scalar import read
from .tile import load_bias, load_new_slots, pool, weight

FEW = 16
"""Slots that one channel keeps in registers."""
MANY = 4 * LANES
"""Most slots, four to a lane."""


def _fits(slots: int) -> bool:
    return slots <= FEW or (slots <= MANY and slots % LANES == 0)


def part_rows(slots: int) -> int:
    """Rows of the tile ``part`` of :func:`pool_new`."""
    return 2 * LANES if _fits(slots) and slots > FEW else 1


@T.macro
def logit(gate: Any, bias: Any, dtype: str) -> Any:
    """fl(gate + bias), both as the contract reads them: bias is not -0 then, so that adding +0 leaves it as it is."""
    added = T.alloc_var("float32")
    added = read(bias)
    bits = T.alloc_var("int32")
    bits = T.cast(gate, "int32") << 16 if dtype == "bfloat16" else T.reinterpret(gate, "int32")
    result = T.alloc_var("float32")
    result = T.if_then_else((bits & MAGNITUDE) < SMALLEST_READ, added, T.reinterpret(bits, "float32") + added)
    return result


@T.macro
def term(p: Any, kv: Any, dtype: str) -> Any:
    """fl(p * kv), kv as the contract reads it; +0, not NaN, for a NaN p and a kv of 0: then the sum of p is NaN too."""
    bits = T.alloc_var("int32")
    bits = T.cast(kv, "int32") << 16 if dtype == "bfloat16" else T.reinterpret(kv, "int32")
    result = T.alloc_var("float32")
    result = T.if_then_else((bits & MAGNITUDE) < SMALLEST_READ, T.float32(0), T.reinterpret(bits, "float32") * p)
    return result


def _row(kv: Any, first: Any, slot: Any) -> Any:
    """The row of a slot's token. Always inside; said so that the compiler need not check every element."""
    return T.max(T.min(first + slot, kv.shape[0] - 1), 0)


def _bias(bias: Any, slot: Any, ratio: int, D: int, channel: Any) -> Any:
    """The bias of a slot's token."""
    return bias[slot % ratio, slot // ratio * D + channel]


@T.macro
def _few(
    kv: Any,
    gate: Any,
    bias: Any,
    first: Any,
    column: Any,
    ratio: int,
    slots: int,
    D: int,
    dtype: str,
    share: Any,
    mean: Any,
) -> None:
    for c in T.Parallel(share.shape[0]):
        z = T.alloc_local((slots,), "float32")
        p = T.alloc_local((slots,), "float32")
        t = T.alloc_local((slots,), "float32")
        top = T.alloc_var("float32")
        for j in tuple(range(slots)):
            z[j] = logit(
                gate[_row(kv, first, j), j // ratio * D + column + c], _bias(bias, j, ratio, D, column + c), dtype
            )
        top = z[slots - 1]
        for j in tuple(range(slots - 1)):
            top = T.if_then_else(z[j] > top, z[j], top)
        for j in tuple(range(slots)):
            p[j] = weight(z[j], top)
            t[j] = term(p[j], kv[_row(kv, first, j), j // ratio * D + column + c], dtype)
        share[c] = ordered_sum([p[j] for j in range(slots)])
        mean[c] = ordered_sum([t[j] for j in range(slots)])


@T.macro
def _many(
    kv: Any,
    gate: Any,
    bias: Any,
    first: Any,
    column: Any,
    ratio: int,
    slots: int,
    D: int,
    dtype: str,
    z: Any,
    part: Any,
    share: Any,
    mean: Any,
) -> None:
    for lane, c in T.Parallel(LANES, share.shape[0]):
        top = T.alloc_var("float32")
        for k in tuple(range(slots // LANES)):
            j = k * LANES + lane
            found = T.alloc_var("float32")
            place = _bias(bias, j, ratio, D, column + c)
            found = logit(gate[_row(kv, first, j), j // ratio * D + column + c], place, dtype)
            z[j, c] = found
            top = found if k == 0 else T.if_then_else(found > top, found, top)
        part[lane, c] = top
    for c in T.Parallel(share.shape[0]):
        top = T.alloc_var("float32")
        top = part[0, c]
        for lane in tuple(range(1, LANES)):
            top = T.if_then_else(part[lane, c] > top, part[lane, c], top)
        share[c] = top
    for lane, c in T.Parallel(LANES, share.shape[0]):
        p = T.alloc_var("float32")
        t = T.alloc_var("float32")
        for k in tuple(range(slots // LANES)):
            j = k * LANES + lane
            w = T.alloc_var("float32")
            w = weight(z[j, c], share[c])
            x = T.alloc_var("float32")
            x = term(w, kv[_row(kv, first, j), j // ratio * D + column + c], dtype)
            p = w if k == 0 else p + w
            t = x if k == 0 else t + x
        part[lane, c] = p
        part[LANES + lane, c] = t
    for c in T.Parallel(share.shape[0]):
        share[c] = ordered_sum([part[lane, c] for lane in range(LANES)])
        mean[c] = ordered_sum([part[LANES + lane, c] for lane in range(LANES)])


@T.macro
def pool_new(
    kv: Any,
    gate: Any,
    position_bias: Any,
    first: Any,
    column: Any,
    ratio: int,
    D: int,
    dtype: str,
    bias: Any,
    v: Any,
    z: Any,
    part: Any,
    top: Any,
    share: Any,
    mean: Any,
) -> None:
    """mean[c] = the weighted mean of channel ``column + c`` over an entry's slots.

    Args:
        kv, gate: [tokens, series * D], at least one token; slot j's is row ``first + j``, in series j // ratio.
        position_bias: float32 [ratio, series * D].
        bias, v, z: float32 [slots, columns], overwritten.
        part: float32 [``part_rows(slots)``, columns], overwritten.
        top, share: float32 [columns], overwritten.
        mean: float32 [columns].
    """
    slots = int(z.shape[0])
    if _fits(slots):
        first_row = T.alloc_var("int32")
        first_row = first
        first_column = T.alloc_var("int32")
        first_column = column
        with composite(
            "weighted_mean",
            mean,
            kv,
            gate,
            position_bias,
            first_row.buffer,
            first_column.buffer,
            ratio=ratio,
            slots=slots,
            series=D,
            wide=int(dtype == "float32"),
        ):
            if slots <= FEW:
                _few(kv, gate, position_bias, first, column, ratio, slots, D, dtype, share, mean)
            else:
                _many(kv, gate, position_bias, first, column, ratio, slots, D, dtype, z, part, share, mean)
            for c in T.Parallel(share.shape[0]):
                share[c] = recip_positive(share[c])
                mean[c] = read(read(mean[c]) * share[c])
    else:
        load_bias(position_bias, column, ratio, D, bias)
        load_new_slots((kv, gate, bias), (first, 0, column), ratio, D, dtype, v, z)
        pool(v, z, 0, top, share, mean)


def of_window(name: str, tiles: Any, tokens: Any, where: Any, ratio: int, series: int, D: int, dtype: str) -> Any:
    """A composite over the slots of a window of a whole sequence.

    Args:
        name: ``"known_mean"``, the weighted mean and what it was made of, or ``"mean_gradient"``, the gradients of the
            window's tokens from that of its mean.
        tiles: of ``known_mean``: mean, top, share, float32 [columns], written. Of ``mean_gradient``: sums, float32 [at
            least slots, columns], to which the gradients of the logits are added; kv_grad, gate_grad, written, in the
            shapes of kv and gate; top, share, mean, slope, float32 [columns].
        tokens: kv, gate and the position bias, as in :func:`pool_new`.
        where: variables: the row of the sequence's first token, the window, the first channel.
        ratio, series, D, dtype: as the kernels' parameters.
    """
    operands = (*tiles, *tokens, *(variable.buffer for variable in where))
    return composite(name, *operands, ratio=ratio, slots=series * ratio, series=D, wide=int(dtype == "float32"))
