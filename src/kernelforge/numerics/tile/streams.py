"""Mixtures of residual streams as TileLang macros: read where they lie, written where they go, one element at a time.

Streams are rows of a tensor [tokens, n * C]: stream j of a token is columns j * C to (j + 1) * C. Both macros work on a
tile of tokens from ``first`` and of channels from ``column``, and skip tokens beyond the tensor's end.
"""

from __future__ import annotations

import tilelang.language as T

from .composite import composite
from .row_sum import ordered_sum
from .scalar import stored, value

DTYPES = ("bfloat16", "float32")


@T.macro
def mix_streams(out, y, x, gate, m, first, column, width, n, dtype):
    """out[t, k] = gate[t, k] * y[t] + R(n) over j of m[t, j, k] * x[t, j].

    Args:
        out, x: global [tokens, n * C] as stored: uint16 bits ("bfloat16") or float32.
        y: global [tokens, C].
        gate: float32 [bm, n] tile, as read.
        m: float32 [bm, n * n] tile, as read.
        first, column: the first token and channel.
        width: channels, static, a multiple of 32.
        n: streams, 2 to 8.
        dtype: one of :data:`DTYPES`.
    """
    first_token = T.alloc_var("int32")
    first_token = first
    first_column = T.alloc_var("int32")
    first_column = column
    tokens = T.alloc_var("int32")
    tokens = x.shape[0]
    with composite(
        "mix_streams",
        out,
        y,
        x,
        gate,
        m,
        first_token.buffer,
        first_column.buffer,
        tokens.buffer,
        width=width,
        n=n,
        dtype=DTYPES.index(dtype),
    ):
        C = x.shape[1] // n
        for i, c in T.Parallel(gate.shape[0], width):
            if first + i < x.shape[0]:
                streams = T.alloc_local((n,), "float32")
                for j in T.unroll(n):
                    streams[j] = value(x[first + i, j * C + column + c], dtype)
                block = T.alloc_var("float32")
                block = value(y[first + i, column + c], dtype)
                for k in T.unroll(n):
                    out[first + i, k * C + column + c] = stored(
                        gate[i, k] * block + ordered_sum([m[i, j * n + k] * streams[j] for j in range(n)]), dtype
                    )


@T.macro
def collapse_streams(out, x, gate, first, column, width, n, dtype):
    """out[t] = R(n) over j of gate[j, t] * x[t, j].

    Args:
        out: global [tokens, C].
        gate: float32 [n, bm] tile, at least 2^-50 in magnitude or zero.
        x, first, column, width, n, dtype: as in :func:`mix_streams`.
    """
    first_token = T.alloc_var("int32")
    first_token = first
    first_column = T.alloc_var("int32")
    first_column = column
    tokens = T.alloc_var("int32")
    tokens = x.shape[0]
    with composite(
        "collapse_streams",
        out,
        x,
        gate,
        first_token.buffer,
        first_column.buffer,
        tokens.buffer,
        width=width,
        n=n,
        dtype=DTYPES.index(dtype),
    ):
        C = x.shape[1] // n
        for i, c in T.Parallel(gate.shape[1], width):
            if first + i < x.shape[0]:
                terms = T.alloc_local((n,), "float32")
                for j in T.unroll(n):
                    terms[j] = gate[j, i] * value(x[first + i, j * C + column + c], dtype)
                out[first + i, column + c] = stored(ordered_sum([terms[j] for j in range(n)]), dtype)
