"""Waiting for torch.distributed's messages."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any

from .errors import PeerLost

Handles = list[tuple[int | None, Any]]
"""torch's handles, by the rank they wait for; None where it could be any."""


class Works:
    """An :class:`.transport.Exchange` of torch's handles, each of which may be waited for once.

    Args:
        coming: what is to be received.
        going: what is to be sent; the same list where one handle stands for all.
    """

    def __init__(self, coming: Handles, going: Handles) -> None:
        self._coming, self._going = coming, going

    def received(self, deadline: float) -> None:
        _wait_for_all(self._coming, deadline)

    def sent(self, deadline: float) -> None:
        _wait_for_all(self._going, deadline)


def _wait_for_all(handles: Handles, deadline: float) -> None:
    while handles:
        _wait(*handles[0], deadline)
        handles.pop(0)


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


def first_line(error: BaseException) -> str:
    """What an error says, without the stack that torch adds."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def never_came(size: int, timeout: float, error: BaseException) -> PeerLost:
    """What to raise when ranks do not connect."""
    return PeerLost(f"the {size} ranks did not all come within {timeout:g} s: {first_line(error)}")
