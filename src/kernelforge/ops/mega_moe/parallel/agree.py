"""The first exchange of a call: every rank learns all counts and rates, and whether all were called alike."""

from __future__ import annotations

import hashlib
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
_HEAD, _RATES = 4, 8
"""Words: the magic number, the call's number, whether the sender cannot go on, a digest of the fields; rates."""
_FIELDS, _TEXT = 24, 256
EXPERTS = 512
"""Counts in the first message of a connection; then it has as many as the last call did. So its size is known before
the call is, and a rank can wait for it. More experts take a second message."""


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
        self._room = EXPERTS
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
        numbers = np.array([*fields.values(), counts.size], dtype=np.int64)
        everything = self._everyone(_first(call, numbers, counts[: self._room], self._room, rates, problem))
        heads = np.stack([data[: 8 * (_HEAD + _RATES)].view(np.int64) for data in everything])
        rank = self._transport.rank
        _same_call(rank, heads, call)
        if heads[:, 2].any() or (heads[:, 3] != heads[0, 3]).any():  # all ranks see it, so all say more
            details = self._exchange(_details(numbers, problem))
            if problem:
                return Agreement(np.zeros((0, 0), dtype=np.int64), ())
            _explain(rank, details, {**fields, "experts": counts.size})
        found = [data[8 * (_HEAD + _RATES) :].view(np.int32)[: counts.size] for data in everything]
        if counts.size > self._room:
            rest = self._exchange(counts[self._room :].astype(np.int32).view(np.uint8))
            found = [np.concatenate([first, more.view(np.int32)]) for first, more in zip(found, rest, strict=True)]
        self._room = min(counts.size, EXPERTS)
        if self._transport.early and self._others:
            self._expected = self._expect(8 * (_HEAD + _RATES) + 4 * self._room)
        largest = heads[:, _HEAD:].view(np.float64).max(0)
        return Agreement(np.stack(found).astype(np.int64), tuple(largest[: len(rates)].tolist()))

    def _everyone(self, mine: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The first messages of all ranks."""
        if not self._transport.early or not self._others:
            return self._exchange(mine)
        deadline = time.monotonic() + self._timeout
        if self._sending is not None:  # the last call's; nothing waits for it sooner
            self._sending[0].sent(deadline)
        (exchange, incoming), self._expected = self._expected or self._expect(mine.size), None
        outgoing = torch.from_numpy(mine).to(self._device)
        self._sending = self._transport.post(AGREE, [Message(p, outgoing) for p in self._others], []), outgoing
        exchange.received(deadline)
        return self._in_order(mine, incoming)

    def _expect(self, nbytes: int) -> tuple[Exchange, dict[int, torch.Tensor]]:
        """Wait for the first messages of the next call from now on."""
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


def _first(
    call: int,
    fields: NDArray[np.int64],
    counts: NDArray[np.int64],
    room: int,
    rates: Sequence[float],
    problem: str,
) -> NDArray[np.uint8]:
    packed = np.zeros(8 * (_HEAD + _RATES) + 4 * room, dtype=np.uint8)
    words = packed[: 8 * (_HEAD + _RATES)].view(np.int64)
    digest = hashlib.blake2b(fields.tobytes(), digest_size=8).digest()
    words[:_HEAD] = _MAGIC, call, bool(problem), int.from_bytes(digest, "little", signed=True)
    words[_HEAD : _HEAD + len(rates)].view(np.float64)[:] = rates
    packed[8 * (_HEAD + _RATES) :].view(np.int32)[: counts.size] = counts
    return packed


def _details(fields: NDArray[np.int64], problem: str) -> NDArray[np.uint8]:
    packed = np.zeros(8 * _FIELDS + _TEXT, dtype=np.uint8)
    packed[: 8 * fields.size].view(np.int64)[:] = fields
    said = np.frombuffer(problem.encode()[:_TEXT], dtype=np.uint8)
    packed[8 * _FIELDS :][: said.size] = said
    return packed


def _same_call(rank: int, heads: NDArray[np.int64], call: int) -> None:
    for peer, head in enumerate(heads):
        if head[0] != _MAGIC:
            raise MoeCommunicationError(f"rank {peer} sent something else where a call begins")
        if head[1] != call:
            raise MoeCommunicationError(f"rank {peer} is at its call {int(head[1])}, rank {rank} at its call {call}")


def _explain(rank: int, details: Sequence[NDArray[np.uint8]], fields: Mapping[str, int]) -> None:
    """Raise what another rank's details say."""
    for peer, detail in enumerate(details):
        if said := detail[8 * _FIELDS :].tobytes().rstrip(b"\0").decode(errors="replace"):
            raise PeerRefused(f"rank {peer} refused this call: {said}")
    for peer, detail in enumerate(details):
        for value, (name, own) in zip(detail[: 8 * _FIELDS].view(np.int64), fields.items(), strict=False):
            if value != own:
                raise PeerRefused(
                    f"{name}: {own} on rank {rank}, {int(value)} on rank {peer}; all ranks must be called alike"
                )
