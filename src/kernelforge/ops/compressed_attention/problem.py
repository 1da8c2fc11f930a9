"""Compressed attention: what a call is about, checked."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import torch

from ..support import Meta, expect

LARGEST_D = 512
SIGN = -(2**31)
"""With its sign bit turned, -1 sorts behind every index."""


class Arguments(NamedTuple):
    """Descriptions of a call's tensors."""

    q: Meta
    kv: Meta
    entries: Meta
    indices: Meta | None
    sink: Meta
    positions: Meta
    kv_start: Meta | None
    block_table: Meta | None
    cos: Meta | None
    sin: Meta | None


class Problem(NamedTuple):
    """A checked call. ``N`` is the number of entries a batch row may have, ``topk`` 0 where all are seen."""

    B: int
    S: int
    H: int
    D: int
    T: int
    N: int
    topk: int
    page: int
    rope: int
    window: int
    ratio: int


def check(given: Arguments, window: int, scale: float, ratio: int) -> Problem:
    device = given.q.device
    q = expect("q", given.q, (torch.bfloat16,), ("B", "S", "H", "D"), device)
    B, S, H, D = q.shape
    if D == 0 or D % 32 or D > LARGEST_D or H == 0:
        raise ValueError(f"q: given {q}; at least one head and D a multiple of 32 up to {LARGEST_D} are wanted")
    kv = expect("kv", given.kv, (torch.bfloat16,), (B, "T", D), device)
    integers = (torch.int32, torch.int64)
    page = 0
    if given.block_table is None:
        N = expect("entries", given.entries, (torch.bfloat16,), (B, "N", D), device).shape[1]
    else:
        page = expect("entries", given.entries, (torch.bfloat16,), ("pages", "page", D), device).shape[1]
        N = page * expect("block_table", given.block_table, (torch.int32,), (B, "n"), device).shape[1]
        if page == 0:
            raise ValueError(f"entries: given {given.entries}; pages of at least one entry are wanted")
    topk = 0
    if given.indices is not None:
        topk = max(1, expect("indices", given.indices, (torch.int32,), (B, S, "K"), device).shape[2])
    expect("sink", given.sink, (torch.float32,), (H,), device)
    expect("positions", given.positions, integers, (B, S), device)
    if given.kv_start is not None:
        expect("kv_start", given.kv_start, integers, (B,), device)
    if (given.cos is None) != (given.sin is None):
        raise ValueError(f"{'sin' if given.sin is None else 'cos'}: missing, wanted with its twin, or neither")
    rope = 0
    if given.cos is not None:
        rope = 2 * expect("cos", given.cos, (torch.float32,), (B, S, "R/2"), device).shape[2]
        expect("sin", given.sin, (torch.float32,), (B, S, rope // 2), device)
        if rope > D:
            raise ValueError(f"cos: given {given.cos}, which rotates {rope} channels; at most D = {D} are wanted")
    for name, value in (("window", window), ("ratio", ratio)):
        if value < 1:
            raise ValueError(f"{name}: given {value}, wanted at least 1")
    if not 2.0**-20 <= scale <= 2.0**20:
        raise ValueError(f"scale: given {scale}, wanted between 2^-20 and 2^20")
    return Problem(B, S, H, D, kv.shape[1], N, topk, page, rope, window, ratio)


def bits_of(x: float) -> int:
    """float32 bits."""
    (bits,) = struct.unpack("<i", struct.pack("<f", x))
    return int(bits)


def factor_bits(scale: float) -> int:
    """float32 bits of scale * log2(e), what scores are multiplied by."""
    return bits_of(scale * math.log2(math.e))


def ascending(indices: torch.Tensor, N: int) -> torch.Tensor:
    """Selected entries, ascending, -1 last: int32 [queries, K], K at least 1.

    Raises:
        ValueError: on the CPU, where an index is none of an entry.
    """
    if indices.shape[-1] == 0:
        return indices.new_full((indices.shape[0] * indices.shape[1], 1), -1)
    if indices.device.type == "cpu":
        low, high = torch.aminmax(indices)
        if int(low) < -1 or int(high) >= N:
            raise ValueError(f"indices: given values from {int(low)} to {int(high)}, wanted -1 to {N - 1}")
    rows = indices.view(-1, indices.shape[-1])
    return (rows ^ SIGN).sort(-1).values.bitwise_xor_(SIGN)
