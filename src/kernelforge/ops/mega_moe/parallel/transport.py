"""The seam between the wave engine and whatever moves bytes between ranks.

A transport posts messages and says when they are done. It knows nothing of experts. There are three: torch.distributed
point-to-point messages (gloo on CPUs, NCCL and HCCL on accelerators), symmetric memory on CUDA (``symmetric``), and,
for tests, ranks that are threads. Checksums (``checked``) and a link with limits (``shaped``) are wrapped around any of
them.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist

from .errors import PeerLost

AGREE, DISPATCH, GIVE_BACK = 0, 1, 2
"""Channels: messages between two ranks arrive in order within one."""
CHANNELS = 3
_TAG = 0x4B46  # apart from other users of the group's tags


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


class Transport(Protocol):
    """Moves bytes between the ranks of a group."""

    rank: int
    size: int

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        """Begin sending and receiving; returns at once. Both sides name the same sizes; no message is empty."""

    def abort(self) -> None:
        """Close every connection, so that no other rank waits for this one; from any thread.

        Nothing can be posted afterwards, and waits in progress end with an error.
        """

    def close(self) -> None:
        """Abort and let go of everything; called once, when no thread posts or waits any more."""


class ProcessGroupTransport:
    """Point-to-point messages of torch.distributed, on connections of its own.

    Args:
        group: the ranks; a new group of the same ranks and backends is made, in which nobody else's messages can be
            mistaken for these and which can be aborted without harm to ``group``. All ranks must come here.
        device: where the messages lie.
        timeout: seconds within which the ranks must have come.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._device = device
        self._host = device.type == "cpu"
        try:
            self._group = dist.new_group(
                dist.get_process_group_ranks(group),
                timeout=timedelta(seconds=timeout),
                backend=dist.get_backend_config(group),
                use_local_synchronization=True,
            )
        except RuntimeError as error:
            raise PeerLost(
                f"the {self.size} ranks did not all come within {timeout:g} s: {_first_line(error)}"
            ) from error
        # A rank can be waited for only one at a time, and the first to be lost must be heard whichever it is.
        wanted = self.size - 1 if self._host and self.size > 2 else 0
        self._waiters = concurrent.futures.ThreadPoolExecutor(2 * wanted, "kernelforge-wait") if wanted else None
        self._aborted = False

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        if self._aborted:
            raise PeerLost("this exchange was closed by an earlier error")
        try:
            coming, going = self._post(_TAG + channel, sends, receives)
        except (RuntimeError, ValueError) as error:
            raise PeerLost(f"rank {self.rank} could not send: {_first_line(error)}") from error
        return _Works(self._waiters, coming, going)

    def _post(self, tag: int, sends: Sequence[Message], receives: Sequence[Message]) -> tuple[Any, Any]:
        if self._host:
            coming = [(m.peer, dist.irecv(m.data, group=self._group, group_src=m.peer, tag=tag)) for m in receives]
            going = [(m.peer, dist.isend(m.data, group=self._group, group_dst=m.peer, tag=tag)) for m in sends]
            return coming, going
        operations = [
            dist.P2POp(what, m.data, group=self._group, group_peer=m.peer, tag=tag)
            for what, messages in ((dist.irecv, receives), (dist.isend, sends))
            for m in messages
        ]
        works = [(-1, work) for work in dist.batch_isend_irecv(operations)]
        return works, works

    def abort(self) -> None:
        if self._aborted:
            return
        self._aborted = True
        backend = self._group._get_backend(self._device)
        if hasattr(backend, "abort"):
            backend.abort()
        if self._waiters is not None:
            self._waiters.shutdown(wait=False)

    def close(self) -> None:
        self.abort()
        dist.destroy_process_group(self._group)


class _Works:
    """torch's handles, by the rank they wait for."""

    def __init__(self, waiters: concurrent.futures.Executor | None, coming: Any, going: Any) -> None:
        self._waiters, self._coming, self._going = waiters, coming, going

    def received(self, deadline: float) -> None:
        self._wait(self._coming, deadline)

    def sent(self, deadline: float) -> None:
        self._wait(self._going, deadline)

    def _wait(self, works: Sequence[tuple[int, Any]], deadline: float) -> None:
        if self._waiters is None or len(works) < 2:
            for peer, work in works:
                _wait(peer, work, deadline)
            return
        waits = [self._waiters.submit(_wait, peer, work, deadline) for peer, work in works]
        done, _ = concurrent.futures.wait(waits, return_when=concurrent.futures.FIRST_EXCEPTION)
        for one in done:
            one.result()


def _wait(peer: int, work: Any, deadline: float) -> None:
    left = max(deadline - time.monotonic(), 0.001)
    begun = time.monotonic()
    try:
        work.wait(timedelta(seconds=left))
    except RuntimeError as error:
        if time.monotonic() - begun >= left:
            raise PeerLost(f"rank {peer} did not answer within {left:.3g} s") from error
        raise PeerLost(f"rank {peer} closed the exchange: it died, or gave up on an error that it reports") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
