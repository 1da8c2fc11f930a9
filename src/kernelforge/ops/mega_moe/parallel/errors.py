"""What can go wrong between ranks. Every one of these ends a call on every rank in bounded time."""

from __future__ import annotations


class MoeCommunicationError(RuntimeError):
    """An expert-parallel call could not be finished. The exchange is closed; the next call opens a new one."""


class PeerLost(MoeCommunicationError):
    """A rank died, gave up, or did not answer within the timeout.

    Args:
        message: which rank and how that was noticed.
        broken: the rank, where a connection to it broke: it may have said why on the other one.
    """

    def __init__(self, message: str, broken: int | None = None) -> None:
        super().__init__(message)
        self.broken = broken


class PayloadCorrupted(MoeCommunicationError):
    """A payload arrived with other bytes than were sent; found only where checksums are on."""


class PeerRefused(RuntimeError):
    """Another rank's arguments were wrong, or differ from this rank's. Nothing was sent; the group can be used on."""
