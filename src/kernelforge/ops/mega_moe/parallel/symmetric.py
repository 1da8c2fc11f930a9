"""Messages through symmetric memory: a sender writes into its receiver's memory and raises a signal there.

Each rank has a mailbox for every other one, of :data:`SLOTS` slots that are used in turn. A message goes through it in
chunks. A slot's two signals, "full" at the receiver and "free" at the sender, are binary: raising one waits until the
last was taken. What waits, waits on the device: sends and receives have a lane (a stream) each, so a sender that waits
for a free slot keeps no receive from going on.

Messages between two ranks are matched by the order in which they are posted, whatever their channels. At turn t of a
post every rank sends to the t-th rank after it and receives from the t-th before it: so nobody waits in a circle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from .errors import PeerLost
from .transport import Exchange, Message, Told

SLOTS = 2
CHUNK = 1 << 20
"""Bytes of a slot."""
FULL, FREE = 0, SLOTS
"""The first of each kind's signal channels."""
CHANNELS = 2 * SLOTS


class Lane(Protocol):
    """Does work in order, beside the caller: a stream."""

    def do(self, work: Callable[[], None]) -> None:
        """Have ``work`` done after all before it, and after what the caller's stream was given."""

    def mark(self) -> Any:
        """The moment after all work so far."""

    def join(self, moment: Any, deadline: float) -> None:
        """Let what the caller's stream is given from now on come after a moment."""


class Workspace(Protocol):
    """Memory and signals that ranks share. ``put``, ``take`` and copies are for work on a lane."""

    rank: int
    size: int

    def lane(self) -> Lane:
        """A new lane."""

    def memory(self, owner: int, begin: int, nbytes: int) -> torch.Tensor:
        """Bytes of a rank's share, uint8 [nbytes]."""

    def put(self, peer: int, channel: int) -> None:
        """Raise this rank's signal at another, once the one before was taken."""

    def take(self, peer: int, channel: int) -> None:
        """Wait for another rank's signal here, and lower it."""


def share_bytes(size: int, chunk: int = CHUNK) -> int:
    """Bytes that each of ``size`` ranks shares."""
    return size * SLOTS * chunk


def slot_begin(source: int, slot: int, chunk: int = CHUNK) -> int:
    """Where a source's slot begins in its receiver's share."""
    return (source * SLOTS + slot) * chunk


class SymmetricTransport:
    """A :class:`.transport.Transport` over a workspace.

    Like NCCL it blocks no thread: a rank that is lost is noticed by the device, when a signal does not come within the
    workspace's timeout.
    """

    early = False

    def __init__(self, workspace: Workspace, chunk: int = CHUNK) -> None:
        self.rank, self.size = workspace.rank, workspace.size
        self._workspace, self._chunk = workspace, chunk
        self._sending, self._receiving = workspace.lane(), workspace.lane()
        self._sent: Counter[int] = Counter()
        self._received: Counter[int] = Counter()
        self._aborted = False

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        if self._aborted:
            raise PeerLost("this exchange was closed by an earlier error")
        going = sorted(sends, key=lambda message: (message.peer - self.rank) % self.size)
        coming = sorted(receives, key=lambda message: (self.rank - message.peer) % self.size)
        self._sending.do(lambda: self._send(going))
        self._receiving.do(lambda: self._receive(coming))
        return _Moments(self._receiving, self._sending)

    def _send(self, messages: Sequence[Message]) -> None:
        shared = self._workspace
        for peer, part in self._parts(messages):
            turn = self._sent[peer]
            slot = turn % SLOTS
            if turn >= SLOTS:
                shared.take(peer, FREE + slot)
            shared.memory(peer, slot_begin(self.rank, slot, self._chunk), part.numel()).copy_(part)
            shared.put(peer, FULL + slot)
            self._sent[peer] += 1

    def _receive(self, messages: Sequence[Message]) -> None:
        shared = self._workspace
        for peer, part in self._parts(messages):
            slot = self._received[peer] % SLOTS
            shared.take(peer, FULL + slot)
            part.copy_(shared.memory(self.rank, slot_begin(peer, slot, self._chunk), part.numel()))
            shared.put(peer, FREE + slot)
            self._received[peer] += 1

    def _parts(self, messages: Sequence[Message]) -> Iterator[tuple[int, torch.Tensor]]:
        """Chunks of messages, with the rank they go to or come from."""
        for message in messages:
            for part in message.data.split(self._chunk):
                yield message.peer, part

    def watch(self, told: Told) -> None:
        pass

    def abort(self, reason: str) -> None:
        self._aborted = True

    def close(self) -> None:
        self._aborted = True


class _Moments:
    """After the messages of a post."""

    def __init__(self, receiving: Lane, sending: Lane) -> None:
        self._receiving, self._sending = receiving, sending
        self._received, self._sent = receiving.mark(), sending.mark()

    def received(self, deadline: float) -> None:
        self._receiving.join(self._received, deadline)

    def sent(self, deadline: float) -> None:
        self._sending.join(self._sent, deadline)
