"""The wave engine of one rank: the caller's thread computes while another one communicates."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import torch

from ..schedule import Span, Step
from .buffers import Buffers
from .errors import MoeCommunicationError, PeerLost
from .streams import Streams
from .transport import Transport

_GRACE = 0.5
"""Seconds that a rank's word why it gave up may arrive after a connection to it broke."""


class Engine:
    """The communication thread of one rank, its buffers and its transport.

    Args:
        transport: between the ranks.
        device: of all tensors.
        timeout: seconds that any single wait for other ranks may take.
    """

    def __init__(self, transport: Transport, device: torch.device, timeout: float) -> None:
        self.transport, self.device, self.timeout = transport, device, timeout
        self.buffers = Buffers(device)
        self.streams = Streams(device)
        self.closed = ""
        """Why no further call can be made; empty while one can."""
        self.owes_error = False
        """Another rank's call failed that this one has yet to make: its next call is that one, and must fail too."""
        self.calls = 0
        self.handling = 0.0
        """Seconds in which the last call's messages kept the computing thread."""
        self._released = False
        self.trace: list[Span] | None = None
        """Set to a list to have computing and waiting recorded, in seconds of ``time.monotonic``."""
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._words: dict[int, PeerLost] = {}
        """What ranks that gave up said."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        engine = weakref.ref(self)

        def told(peer: int, reason: str) -> None:
            if (alive := engine()) is not None:
                alive._told(peer, reason)

        transport.watch(told)

    @contextlib.contextmanager
    def call(self) -> Iterator[int]:
        """One call at a time; gives its number."""
        if not self._lock.acquire(timeout=self.timeout):
            raise MoeCommunicationError("another thread's call on this group does not end")
        try:
            if self.closed:
                self.owes_error = False
                raise PeerLost(f"this exchange was closed by an earlier error: {self.closed}")
            self.calls += 1
            yield self.calls
        finally:
            self._lock.release()

    def close(self, reason: str = "") -> None:
        """Let no other rank wait for this one.

        Args:
            reason: what went wrong here; empty if nothing did.
        """
        if not self._released:
            self._released = True
            self.closed = self.closed or reason or "closed"
            self.transport.abort(reason)
            self._jobs.put(None)
            self.transport.close()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Close the exchange if anything fails inside."""
        try:
            yield
        except BaseException as error:
            self.owes_error = False
            first = self._explained(self._failure or error)  # a failed job closes what this thread is about to use
            self.close(f"{type(first).__name__}: {first}")
            if first is not error:
                raise first from None
            raise

    def _explained(self, error: BaseException) -> BaseException:
        """The word of the rank behind a broken connection: it comes on another one, so it may come later."""
        peer = error.broken if isinstance(error, PeerLost) else None
        if peer is None:
            return error
        with self._changed:
            self._changed.wait_for(lambda: peer in self._words, _GRACE)
        return self._words.get(peer, error)

    def submit(self, job: Callable[[], None]) -> None:
        """Give the communication thread something to do, after all it was given before; its failure is the engine's."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_communicate, args=(self._jobs, self.streams), name="kernelforge-moe", daemon=True
            )
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None)

        def guarded() -> None:
            if self._failure is not None:
                return
            try:
                job()
            except BaseException as error:
                self._fail(error)
                self.transport.abort(f"{type(error).__name__}: {error}")
            else:
                with self._changed:
                    self._changed.notify_all()

        self._jobs.put(guarded)

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when ``condition`` holds, which some job brings about.

        Raises:
            MoeCommunicationError: or whatever else made a job fail; or another rank said that it failed. A job that
                waits for a rank has a deadline of its own.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or condition())
        if self._failure is not None:
            raise self._failure

    def perform(self, job: Callable[[], None], meanwhile: Callable[[], None] | None = None) -> None:
        """Do a job on the communication thread, ``meanwhile`` on this one; return when both are done.

        Raises:
            MoeCommunicationError: as :meth:`until`; or whatever ``meanwhile`` raised.
        """
        done: list[bool] = []

        def noted() -> None:
            job()
            done.append(True)

        with self.guarded():
            self.submit(noted)
            if meanwhile is not None:
                meanwhile()
            self.until(lambda: bool(done))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()

    def _told(self, peer: int, reason: str) -> None:
        """Another rank aborted."""
        if reason:
            self.owes_error = not self.closed
            self.closed = self.closed or f"rank {peer} gave up: {reason}"
            self._words[peer] = PeerLost(f"rank {peer} gave up: {reason}")
            self._fail(self._words[peer])
        self.closed = self.closed or f"rank {peer} closed it"
        self.transport.abort(reason and f"rank {peer} gave up: {reason}")

    def deadline(self) -> float:
        """The end of a wait that begins now."""
        return time.monotonic() + self.timeout

    @contextlib.contextmanager
    def timed(self, step: Step) -> Iterator[None]:
        """Record a step of computing."""
        if self.trace is None:
            yield
            return
        begin = time.monotonic()
        yield
        self.trace.append(Span(self.transport.rank, "compute", step.action, step.wave, begin, time.monotonic()))


def _communicate(jobs: queue.SimpleQueue[Callable[[], None] | None], streams: Streams) -> None:
    """The communication thread. It holds no engine, so an engine that nobody uses is dropped and ends it."""
    with streams.communication():
        while (job := jobs.get()) is not None:
            job()
            del job
