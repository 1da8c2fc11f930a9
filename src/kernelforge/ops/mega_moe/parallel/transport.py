"""The seam between the wave engine and whatever moves bytes between ranks.

A transport posts messages and says when they are done. It knows nothing of experts. There are gloo's messages on CPUs
(``gloo``), NCCL's and HCCL's on accelerators (``accelerator``), the ranks' own stores into each other's memory
(``symmetric``) and, for tests, ranks that are threads. Checksums and a link with limits (``headed``) are wrapped around
any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

AGREE, DISPATCH, GIVE_BACK = 0, 1, 2
"""Channels: messages between two ranks arrive in order within one."""
CHANNELS = 3
TAG = 0x4B46
"""torch.distributed's tag of the first channel; those of the others follow."""


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
