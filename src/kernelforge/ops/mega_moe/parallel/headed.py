"""Transports around a transport: a few words travel with each message, on a channel of their own."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Sequence

import torch

from .errors import PayloadCorrupted
from .transport import CHANNELS, Exchange, Message, Told, Transport

WORDS = 2


class _Headed:
    """Sends words beside each message; what they mean is the subclass's."""

    depth: int

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.rank, self.size, self.early = inner.rank, inner.size, inner.early
        self.depth = getattr(inner, "depth", 0) + 1

    def watch(self, told: Told) -> None:
        self.inner.watch(told)

    def abort(self, reason: str) -> None:
        self.inner.abort(reason)

    def close(self) -> None:
        self.inner.close()

    def _post(
        self, channel: int, sends: Sequence[Message], receives: Sequence[Message], words: Sequence[tuple[int, int]]
    ) -> tuple[Exchange, Exchange, torch.Tensor]:
        device = (sends[0] if sends else receives[0]).data.device
        going = torch.tensor(words, dtype=torch.int64, device=device).reshape(-1, WORDS)
        coming = torch.zeros((len(receives), WORDS), dtype=torch.int64, device=device)
        headers = self.inner.post(
            channel + CHANNELS * self.depth,
            [Message(m.peer, row.view(torch.uint8)) for m, row in zip(sends, going, strict=True)],
            [Message(m.peer, row.view(torch.uint8)) for m, row in zip(receives, coming, strict=True)],
        )
        return headers, self.inner.post(channel, sends, receives), coming


class CheckedTransport(_Headed):
    """A checksum (CRC-32) with each message, and its place in the sequence: for debugging a network.

    Received bytes are read once more and sent ones too; a message that is not what was sent raises
    :class:`PayloadCorrupted`.
    """

    def __init__(self, inner: Transport) -> None:
        super().__init__(inner)
        self._sent: Counter[tuple[int, int]] = Counter()
        self._received: Counter[tuple[int, int]] = Counter()

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        words = [(_next(self._sent, channel, m.peer), _checksum(m.data)) for m in sends]
        headers, payload, coming = self._post(channel, sends, receives, words)
        numbers = [_next(self._received, channel, m.peer) for m in receives]
        return _Checked(headers, payload, coming, receives, numbers)


class _Checked:
    def __init__(
        self,
        headers: Exchange,
        payload: Exchange,
        coming: torch.Tensor,
        receives: Sequence[Message],
        numbers: Sequence[int],
    ) -> None:
        self._headers, self._payload = headers, payload
        self._coming, self._receives, self._numbers = coming, receives, numbers

    def received(self, deadline: float) -> None:
        self._headers.received(deadline)
        self._payload.received(deadline)
        arrived = zip(self._receives, self._numbers, self._coming.tolist(), strict=True)
        for message, wanted, (number, checksum) in arrived:
            if number != wanted:
                raise PayloadCorrupted(f"from rank {message.peer}: message {number} arrived, {wanted} was expected")
            if _checksum(message.data) != checksum:
                size = message.data.numel()
                raise PayloadCorrupted(
                    f"from rank {message.peer}: {size} bytes arrived with another checksum than sent"
                )

    def sent(self, deadline: float) -> None:
        self._headers.sent(deadline)
        self._payload.sent(deadline)


def _next(counter: Counter[tuple[int, int]], channel: int, peer: int) -> int:
    """The number of the next message to or from a rank on a channel."""
    counter[channel, peer] += 1
    return counter[channel, peer]


def _checksum(data: torch.Tensor) -> int:
    return zlib.crc32(data.cpu().numpy().data)


class Link:
    """A link out of a rank with limits: for benchmarks and tests of schedules on one machine.

    Messages leave one after another. Each is held back at its receiver until the time at which it would have come
    through such a link, on the machine's monotonic clock, which all ranks must share. Nothing is slowed: what the link
    does not limit stays as quick as it is.

    Attributes:
        bandwidth: bytes per second; infinity for no limit.
        latency: seconds from the last byte sent to its arrival.
    """

    def __init__(self, bandwidth: float = float("inf"), latency: float = 0.0) -> None:
        if not bandwidth > 0 or not latency >= 0:
            raise ValueError(f"link: given bandwidth {bandwidth}, latency {latency}; wanted above 0, and 0 or more")
        self.bandwidth, self.latency = bandwidth, latency


class ShapedTransport(_Headed):
    """A transport whose messages take as long as a :class:`Link` says."""

    def __init__(self, inner: Transport, link: Link) -> None:
        super().__init__(inner)
        self.link = link
        self._free = 0
        self.log: list[tuple[int, int, int]] = []
        """Channel, start and end of every message since it was last cleared, in nanoseconds."""

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        words = []
        for message in sends:
            begin = max(time.monotonic_ns(), self._free)
            self._free = begin + round(message.data.numel() / self.link.bandwidth * 1e9)
            self.log.append((channel, begin, self._free))
            words.append((self._free + round(self.link.latency * 1e9), 0))
        headers, payload, coming = self._post(channel, sends, receives, words)
        return _Shaped(headers, payload, coming, self._free)


class _Shaped:
    def __init__(self, headers: Exchange, payload: Exchange, coming: torch.Tensor, drained: int) -> None:
        self._headers, self._payload, self._coming, self._drained = headers, payload, coming, drained

    def received(self, deadline: float) -> None:
        self._headers.received(deadline)
        self._payload.received(deadline)
        if self._coming.numel():
            _sleep_until(int(self._coming[:, 0].max()))

    def sent(self, deadline: float) -> None:
        self._headers.sent(deadline)
        self._payload.sent(deadline)
        _sleep_until(self._drained)


def _sleep_until(moment: int) -> None:
    left = (moment - time.monotonic_ns()) / 1e9
    if left > 0:
        time.sleep(left)
