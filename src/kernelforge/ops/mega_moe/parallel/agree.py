"""The first exchange of a call: every rank learns all counts and rates, and whether all were called alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import MoeCommunicationError, PeerRefused
from .transport import AGREE, Exchange, Message, Transport
from .waves import peers

_MAGIC = 0x6B66_6D6F_6532
_WORDS = 96
_TEXT = 256
_FIELDS = 24
_RATES = 8
EXPERTS = 512
"""Counts in the first message, which has one size: a rank can wait for it before it knows of the next call. More
experts take a second one."""
_BYTES = 8 * _WORDS + 4 * EXPERTS


class Agreement(NamedTuple):
    """What all ranks know: counts [ranks, experts], and of each rate the largest of all ranks."""

    counts: NDArray[np.int64]
    rates: tuple[float, ...]


class Agreeing:
    """Exchanges counts between the ranks of a transport, call by call.

    Args:
        transport: between the ranks.
        device: where messages lie.
        timeout: seconds to wait for the others.
    """

    def __init__(self, transport: Transport, device: torch.device, timeout: float) -> None:
        self._transport, self._device, self._timeout = transport, device, timeout
        self._others = peers(transport.rank, transport.size)
        self._expected: tuple[Exchange, dict[int, torch.Tensor]] | None = None
        self._sending: tuple[Exchange, torch.Tensor] | None = None

    def agree(
        self,
        call: int,
        fields: Mapping[str, int],
        counts: NDArray[np.int64],
        rates: Sequence[float],
        problem: str,
    ) -> Agreement:
        """Exchange counts.

        Args:
            call: number of this call.
            fields: what must be the same everywhere, by the name that an error gives it.
            counts: rows for each expert, [experts].
            rates: this rank's measurements.
            problem: why this rank cannot go on, or empty; then what is returned holds nothing of use.

        Raises:
            PeerRefused: another rank cannot go on, or was called otherwise.
            PeerLost: a rank did not answer.
        """
        mine = _pack(call, fields, counts, rates, problem)
        everything = self._everyone(mine)
        heads = [data[: 8 * _WORDS].view(np.int64) for data in everything]
        _compare(self._transport.rank, heads, call, fields)
        found = [data[8 * _WORDS :].view(np.int32)[: counts.size] for data in everything]
        if counts.size > EXPERTS and not problem:
            rest = self._exchange(counts[EXPERTS:].astype(np.int32).view(np.uint8))
            found = [np.concatenate([first, more.view(np.int32)]) for first, more in zip(found, rest, strict=True)]
        largest = np.stack([head[3 + _FIELDS : 3 + _FIELDS + _RATES].view(np.float64) for head in heads]).max(0)
        return Agreement(np.stack(found).astype(np.int64), tuple(largest[: len(rates)].tolist()))

    def _everyone(self, mine: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The first messages of all ranks; the next call's are waited for from now on."""
        if not self._transport.early or not self._others:
            return self._exchange(mine)
        deadline = time.monotonic() + self._timeout
        if self._sending is not None:  # the last call's; nothing waits for it sooner
            self._sending[0].sent(deadline)
        exchange, incoming = self._expected or self._expect(mine.size)
        outgoing = torch.from_numpy(mine).to(self._device)
        self._sending = self._transport.post(AGREE, [Message(p, outgoing) for p in self._others], []), outgoing
        exchange.received(deadline)
        self._expected = self._expect(mine.size)
        return self._in_order(mine, incoming)

    def _expect(self, nbytes: int) -> tuple[Exchange, dict[int, torch.Tensor]]:
        incoming = self._space(nbytes)
        return self._transport.post(AGREE, [], [Message(p, data) for p, data in incoming.items()]), incoming

    def _exchange(self, mine: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        outgoing, incoming = torch.from_numpy(mine).to(self._device), self._space(mine.size)
        if self._others:
            sends = [Message(p, outgoing) for p in self._others]
            exchange = self._transport.post(AGREE, sends, [Message(p, data) for p, data in incoming.items()])
            deadline = time.monotonic() + self._timeout
            exchange.received(deadline)
            exchange.sent(deadline)
        return self._in_order(mine, incoming)

    def _space(self, nbytes: int) -> dict[int, torch.Tensor]:
        return {peer: torch.empty(nbytes, dtype=torch.uint8, device=self._device) for peer in self._others}

    def _in_order(self, mine: NDArray[np.uint8], incoming: Mapping[int, torch.Tensor]) -> list[NDArray[np.uint8]]:
        ranks = range(self._transport.size)
        return [mine if r == self._transport.rank else incoming[r].cpu().numpy() for r in ranks]


def _pack(
    call: int, fields: Mapping[str, int], counts: NDArray[np.int64], rates: Sequence[float], problem: str
) -> NDArray[np.uint8]:
    packed = np.zeros(_BYTES, dtype=np.uint8)
    head, tail = packed[: 8 * _WORDS].view(np.int64), packed[8 * _WORDS :].view(np.int32)
    head[:3] = _MAGIC, call, len(problem.encode()[:_TEXT])
    head[3 : 3 + len(fields)] = list(fields.values())
    head[3 + _FIELDS : 3 + _FIELDS + len(rates)] = np.asarray(rates, dtype=np.float64).view(np.int64)
    said = np.frombuffer(problem.encode()[:_TEXT], dtype=np.uint8)
    head[-_TEXT // 8 :].view(np.uint8)[: said.size] = said
    tail[: counts.size] = counts[:EXPERTS]
    return packed


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
