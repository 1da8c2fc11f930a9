"""Messages by gloo, between ranks on CPUs.

They have connections of their own: nobody else's messages can be mistaken for these, and the connections can be closed
without harm to the group.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from .attempts import Attempt, join
from .errors import PeerLost
from .transport import TAG, Exchange, Message, Told
from .works import Handles, Works, first_line, never_came

_NOTICE = 256
"""Bytes of a rank's word that it aborted."""


class GlooTransport:
    """A :class:`.transport.Transport` of point-to-point messages between CPUs.

    Messages to higher ranks take one connection, those to lower ranks another: gloo's thread polls a connection without
    sleeping while a message is being posted on it, so what comes in must not meet what goes out.

    Args:
        group: the ranks; all must come here.
        timeout: seconds within which they must have come.

    Raises:
        PeerLost: they did not.
    """

    early = True

    def __init__(self, group: dist.ProcessGroup, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._aborted = False
        try:
            self._attempt = join(group, timeout)
            with self._attempt.given_up_on_failure():
                self._up, self._down = _connect(self._attempt, self.size, timeout)
        except (RuntimeError, TimeoutError) as error:
            raise never_came(self.size, timeout, error) from error

    def _way(self, source: int, target: int) -> Any:
        return self._up if source < target else self._down

    def watch(self, told: Told) -> None:
        for peer in range(self.size):
            if peer != self.rank:
                notice = torch.zeros(_NOTICE, dtype=torch.uint8)
                work = self._way(peer, self.rank).recv([notice], peer, TAG - 1)
                threading.Thread(
                    target=_listen, args=(peer, work, notice, told), name=f"kernelforge-moe-{peer}", daemon=True
                ).start()

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        if self._aborted:
            raise PeerLost("this exchange was closed by an earlier error")
        tag = TAG + channel
        coming: Handles = [(m.peer, _begin(self._way(m.peer, self.rank).recv, m, tag)) for m in receives]
        going: Handles = [(m.peer, _begin(self._way(self.rank, m.peer).send, m, tag)) for m in sends]
        return Works(coming, going)

    def abort(self, reason: str) -> None:
        if self._aborted:
            return
        self._aborted = True
        said = reason.encode()[: _NOTICE - 1]
        notice = torch.tensor([len(said) > 0, *said, *bytes(_NOTICE - 1 - len(said))], dtype=torch.uint8)
        for peer in range(self.size):
            if peer != self.rank:
                with contextlib.suppress(RuntimeError):  # it is gone
                    self._way(self.rank, peer).send([notice], peer, TAG - 1)
        self._attempt.give_up()

    def close(self) -> None:
        """Nothing to do: connections end when nobody holds them."""


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


def _connect(attempt: Attempt, size: int, timeout: float) -> tuple[Any, Any]:
    """A connection to higher ranks and one to lower ranks."""
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_default_device()]  # one thread for both
    options._timeout = timedelta(seconds=timeout)
    up, down = (
        dist.ProcessGroupGloo(distributed_c10d.PrefixStore(way, attempt.store), attempt.rank, size, options)
        for way in ("up", "down")
    )
    return up, down
