"""The seam between the wave engine and whatever moves bytes between ranks.

A transport posts messages and says when they are done. It knows nothing of experts. There are two: torch.distributed
point-to-point messages (gloo on CPUs, NCCL and HCCL on accelerators) and, for tests, ranks that are threads. Checksums
(``checked``) and a link with limits (``shaped``) are wrapped around any of them.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist

from .connection import connect, first_line
from .errors import PeerLost

AGREE, DISPATCH, GIVE_BACK = 0, 1, 2
"""Channels: messages between two ranks arrive in order within one."""
CHANNELS = 3
_TAG = 0x4B46
_NOTICE = 256
"""Bytes of a rank's word that it aborted."""


class Message(NamedTuple):
    """Bytes for or from a rank: a flat, contiguous uint8 tensor."""

    peer: int
    data: torch.Tensor


class Exchange(Protocol):
    """Messages under way."""

    def received(self, deadline: float) -> None:
        """Return when all that was to be received is there.

        Args:
            deadline: on ``time.monotonic``.

        Raises:
            MoeCommunicationError: a rank was lost, or the deadline passed.
        """

    def sent(self, deadline: float) -> None:
        """Return when what was to be sent may be overwritten; raises as :meth:`received`."""


Told = Callable[[int, str], None]
"""Called with a rank and why it aborted, empty where nothing was wrong."""


class Transport(Protocol):
    """Moves bytes between the ranks of a group."""

    rank: int
    size: int
    early: bool
    """Whether receives may be posted before the sends that would go beside them, which spares a message its wait."""

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        """Begin sending and receiving; returns at once. Both sides name the same sizes; no message is empty."""

    def watch(self, told: Told) -> None:
        """Have ``told`` called, from any thread, when another rank says that it aborted."""

    def abort(self, reason: str) -> None:
        """Tell the other ranks that nothing more comes from this one, and why; from any thread.

        Args:
            reason: empty where nothing is wrong: others then finish what they are at.
        """

    def close(self) -> None:
        """Abort and let go of everything; called once, when no thread posts or waits any more."""


class ProcessGroupTransport:
    """Point-to-point messages of torch.distributed, on connections of its own.

    Args:
        group: the ranks; they are connected anew, so that nobody else's messages can be mistaken for these and the
            connections can be closed without harm to ``group``. All ranks must come here.
        device: where the messages lie.
        timeout: seconds within which the ranks must have come.

    Raises:
        PeerLost: they did not.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._host = self.early = device.type == "cpu"
        self._aborted = False
        self._connection = connect(group, device, timeout)

    def _way(self, source: int, target: int) -> Any:
        return self._connection.up if source < target else self._connection.down

    def watch(self, told: Told) -> None:
        if not self._host:
            return  # nothing there blocks a thread: what a lost rank leaves behind ends by the backend's own timeout
        for peer in range(self.size):
            if peer != self.rank:
                notice = torch.zeros(_NOTICE, dtype=torch.uint8)
                work = self._way(peer, self.rank).recv([notice], peer, _TAG - 1)
                threading.Thread(
                    target=_listen, args=(peer, work, notice, told), name=f"kernelforge-moe-{peer}", daemon=True
                ).start()

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        if self._aborted:
            raise PeerLost("this exchange was closed by an earlier error")
        tag = _TAG + channel
        if self._host:
            coming = [(m.peer, _begin(self._way(m.peer, self.rank).recv, m, tag)) for m in receives]
            going = [(m.peer, _begin(self._way(self.rank, m.peer).send, m, tag)) for m in sends]
            return _Works(coming, going)
        try:
            works = self._batch(tag, sends, receives)
        except (RuntimeError, ValueError) as error:
            raise PeerLost(f"rank {self.rank} could not send: {first_line(error)}") from error
        return _Works(works, works)

    def _batch(self, tag: int, sends: Sequence[Message], receives: Sequence[Message]) -> list[tuple[None, Any]]:
        operations = [
            dist.P2POp(what, m.data, group=self._connection.up, group_peer=m.peer, tag=tag)
            for what, messages in ((dist.irecv, receives), (dist.isend, sends))
            for m in messages
        ]
        return [(None, work) for work in dist.batch_isend_irecv(operations)]

    def abort(self, reason: str) -> None:
        if self._aborted:
            return
        self._aborted = True
        if self._host:
            said = reason.encode()[: _NOTICE - 1]
            notice = torch.tensor([len(said) > 0, *said, *bytes(_NOTICE - 1 - len(said))], dtype=torch.uint8)
            for peer in range(self.size):
                if peer != self.rank:
                    with contextlib.suppress(RuntimeError):  # it is gone
                        self._way(self.rank, peer).send([notice], peer, _TAG - 1)
        self._connection.abort()

    def close(self) -> None:
        self._connection.close()


def _listen(peer: int, work: Any, notice: torch.Tensor, told: Told) -> None:
    """Wait for a rank's word that it aborted. A rank that just dies is noticed by whoever waits for it."""
    try:
        work.wait(timedelta(days=365))
    except RuntimeError:
        return
    told(peer, bytes(notice[1:].tolist()).rstrip(b"\0").decode(errors="replace"))


def _begin(send_or_receive: Callable[..., Any], message: Message, tag: int) -> Any:
    try:
        return send_or_receive([message.data], message.peer, tag)
    except RuntimeError as error:
        raise PeerLost(f"rank {message.peer} is gone: {first_line(error)}", broken=message.peer) from error


class _Works:
    """torch's handles, by the rank they wait for; none where it could be any."""

    def __init__(self, coming: Any, going: Any) -> None:
        self._coming, self._going = coming, going

    def received(self, deadline: float) -> None:
        for peer, work in self._coming:
            _wait(peer, work, deadline)

    def sent(self, deadline: float) -> None:
        for peer, work in self._going:
            _wait(peer, work, deadline)


def _wait(peer: int | None, work: Any, deadline: float) -> None:
    begun = time.monotonic()
    # torch waits whole milliseconds: a part of one, cut off, would end the wait before the deadline.
    milliseconds = max(math.ceil((deadline - begun) * 1000), 1)
    try:
        work.wait(timedelta(milliseconds=milliseconds))
    except RuntimeError as error:
        who = "a rank" if peer is None else f"rank {peer}"
        if time.monotonic() - begun >= milliseconds / 1000:
            raise PeerLost(f"{who} did not answer within {milliseconds / 1000:.3g} s") from error
        raise PeerLost(f"{who} is gone: {first_line(error)}", broken=peer) from error
