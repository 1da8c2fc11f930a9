"""The first exchange of a call: every rank learns all counts and rates, and whether all were called alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import MoeCommunicationError, PeerRefused
from .transport import AGREE, Message, Transport
from .waves import peers

_MAGIC = 0x6B66_6D6F_6532
_WORDS = 96
_TEXT = 256
_FIELDS = 24
_RATES = 8
EXPERTS = 1024
"""Counts in one message; more experts take a multiple of it, so that ranks that differ still understand each other."""


class Agreement(NamedTuple):
    """What all ranks know: counts [ranks, experts], and of each rate the largest of all ranks."""

    counts: NDArray[np.int64]
    rates: tuple[float, ...]


def agree(
    transport: Transport,
    device: torch.device,
    call: int,
    fields: Mapping[str, int],
    counts: NDArray[np.int64],
    rates: Sequence[float],
    problem: str,
    timeout: float,
) -> Agreement:
    """Exchange counts.

    Args:
        transport: between the ranks.
        device: where messages lie.
        call: number of this call.
        fields: what must be the same everywhere, by the name that an error gives it.
        counts: rows for each expert, [experts].
        rates: this rank's measurements.
        problem: why this rank cannot go on, or empty.
        timeout: seconds to wait for the others.

    Raises:
        PeerRefused: another rank cannot go on, or was called otherwise.
        PeerLost: a rank did not answer.
    """
    capacity = -(-max(counts.size, 1) // EXPERTS) * EXPERTS
    mine = _pack(call, fields, counts, rates, problem, capacity)
    others = peers(transport.rank, transport.size)
    outgoing = torch.from_numpy(mine).to(device)
    incoming = {peer: torch.empty(mine.size, dtype=torch.uint8, device=device) for peer in others}
    if others:
        exchange = transport.post(
            AGREE, [Message(p, outgoing) for p in others], [Message(p, data) for p, data in incoming.items()]
        )
        deadline = time.monotonic() + timeout
        exchange.received(deadline)
        exchange.sent(deadline)
    everything = [mine if r == transport.rank else incoming[r].cpu().numpy() for r in range(transport.size)]
    heads = [data[: 8 * _WORDS].view(np.int64) for data in everything]
    _compare(transport.rank, heads, call, fields)
    found = np.stack([data[8 * _WORDS :].view(np.int32)[: counts.size] for data in everything]).astype(np.int64)
    largest = np.stack([head[3 + _FIELDS : 3 + _FIELDS + _RATES].view(np.float64) for head in heads]).max(0)
    return Agreement(found, tuple(largest[: len(rates)].tolist()))


def _pack(
    call: int,
    fields: Mapping[str, int],
    counts: NDArray[np.int64],
    rates: Sequence[float],
    problem: str,
    capacity: int,
) -> NDArray[np.uint8]:
    head = np.zeros(_WORDS, dtype=np.int64)
    head[:3] = _MAGIC, call, len(problem.encode()[:_TEXT])
    head[3 : 3 + len(fields)] = list(fields.values())
    head[3 + _FIELDS : 3 + _FIELDS + len(rates)] = np.asarray(rates, dtype=np.float64).view(np.int64)
    text = head[-_TEXT // 8 :].view(np.uint8)
    said = np.frombuffer(problem.encode()[:_TEXT], dtype=np.uint8)
    text[: said.size] = said
    tail = np.zeros(capacity, dtype=np.int32)
    tail[: counts.size] = counts
    return np.concatenate([head.view(np.uint8), tail.view(np.uint8)])


def _compare(rank: int, heads: Sequence[NDArray[np.int64]], call: int, fields: Mapping[str, int]) -> None:
    for peer, head in enumerate(heads):
        if peer == rank:
            continue
        if head[0] != _MAGIC:
            raise MoeCommunicationError(f"rank {peer} sent something else where a call begins")
        if head[2]:
            said = head[-_TEXT // 8 :].tobytes()[: int(head[2])].decode(errors="replace")
            raise PeerRefused(f"rank {peer} refused this call: {said}")
    for peer, head in enumerate(heads):
        if head[1] != call:
            raise MoeCommunicationError(f"rank {peer} is at its call {int(head[1])}, rank {rank} at its call {call}")
        for index, (name, value) in enumerate(fields.items()):
            if head[3 + index] != value:
                raise PeerRefused(
                    f"{name}: {value} on rank {rank}, {int(head[3 + index])} on rank {peer}; "
                    "all ranks must be called alike"
                )
