"""The wave engine: runs a program on this rank, computing in the caller's thread while another one communicates."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..schedule import Span, Step
from .buffers import Buffers
from .errors import MoeCommunicationError, PeerLost
from .streams import Streams
from .transport import DISPATCH, GIVE_BACK, Exchange, Message, Transport
from .waves import WavePlan, peers


@dataclass
class Arrived:
    """A wave on its expert's rank.

    Attributes:
        rows: uint8 [n, row_bytes], sorted by expert, then by the rank they came from.
        offsets: int32 [local experts + 1].
        experts: those with rows.
    """

    rows: torch.Tensor
    offsets: torch.Tensor
    experts: int


class Compute(Protocol):
    """What is done with a wave."""

    def linear1(self, wave: int, arrived: Arrived) -> Any:
        """The first half; its result is handed to the second. ``arrived.rows`` is overwritten two waves later."""

    def linear2(self, wave: int, arrived: Arrived, state: Any) -> torch.Tensor:
        """The second half: the rows to give back, uint8 [n, result_bytes], in the order they came."""


@dataclass
class _Wave:
    """One wave under way."""

    arrived: Arrived | None = None
    event: Any = None
    state: Any = None
    back: torch.Tensor | None = None


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
        self.calls = 0
        self._released = False
        self.trace: list[Span] | None = None
        """Set to a list to have computing and waiting recorded, in seconds of ``time.monotonic``."""
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
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

    def run(
        self,
        steps: Sequence[Step],
        plan: WavePlan,
        rows: torch.Tensor,
        compute: Compute,
        result_bytes: int,
    ) -> torch.Tensor:
        """Send rows to their experts' ranks, compute, and return the results.

        Args:
            steps: the program.
            plan: the same on all ranks.
            rows: uint8 [plan.rows, row_bytes], sorted by expert; not to be changed before this returns.
            compute: what to do with a wave.
            result_bytes: bytes of a row that comes back.

        Returns:
            uint8 [plan.rows, result_bytes], where the rows were; valid until the next call.

        Raises:
            MoeCommunicationError: the exchange failed and is closed; or whatever ``compute`` raised, likewise.
        """
        with self.guarded():
            return _Run(self, plan, rows, compute, result_bytes).execute(steps)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Close the exchange if anything fails inside."""
        try:
            yield
        except BaseException as error:
            first = self._failure or error  # a failed job closes what this thread is about to use
            self.close(f"{type(first).__name__}: {first}")
            if first is not error:
                raise first from None
            raise

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

    def perform(self, job: Callable[[], None]) -> None:
        """Do a job on the communication thread and return when it is done; raises as :meth:`until`."""
        done: list[bool] = []

        def noted() -> None:
            job()
            done.append(True)

        with self.guarded():
            self.submit(noted)
            self.until(lambda: bool(done))

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()

    def _told(self, peer: int, reason: str) -> None:
        """Another rank aborted."""
        self.closed = self.closed or f"rank {peer} closed it"
        if reason:
            self._fail(PeerLost(f"rank {peer} gave up: {reason}"))
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


class _Run:
    """One execution of a program."""

    def __init__(self, engine: Engine, plan: WavePlan, rows: torch.Tensor, compute: Compute, result_bytes: int) -> None:
        self.engine, self.plan, self.rows, self.compute, self.result_bytes = engine, plan, rows, compute, result_bytes
        self.rank = engine.transport.rank
        self.others = peers(self.rank, engine.transport.size)
        self.waves = [_Wave() for _ in range(plan.waves)]
        self.results = engine.buffers.take("results", plan.rows, result_bytes)
        self.given = engine.buffers.take("given", plan.hosted, result_bytes)
        self.given_rows = 0
        self.sent: list[Exchange] = []
        self.finished: list[Any] = []

    def execute(self, steps: Sequence[Step]) -> torch.Tensor:
        do = {
            "dispatch": self._dispatch,
            "linear1": self._linear1,
            "linear2": self._linear2,
            "give_back": self._give_back,
        }
        for step in steps:
            do[step.action](step)
        self.engine.submit(self._finish)
        self.engine.until(lambda: bool(self.finished))
        self.engine.streams.join(self.finished[0])
        return self.results

    def _dispatch(self, step: Step) -> None:
        """Post a wave's tokens, and have the communication thread sort them when they are there."""
        wave, plan = step.wave, self.plan
        coming = plan.coming(wave)
        row_bytes = self.rows.shape[1]
        received = self.engine.buffers.take(f"received {wave % 2}", coming[-1].stop, row_bytes)
        received[coming[self.rank]] = self.rows[plan.going(wave, self.rank)]
        exchange = self._post(
            DISPATCH,
            [Message(p, self.rows[plan.going(wave, p)].view(-1)) for p in self.others],
            [Message(p, received[coming[p]].view(-1)) for p in self.others],
        )

        def arrive() -> None:
            if exchange is not None:
                exchange.received(self.engine.deadline())
            order = torch.from_numpy(plan.by_expert(wave)).to(received.device)
            rows = self.engine.buffers.take(f"rows {wave % 2}", *received.shape)
            torch.index_select(received, 0, order, out=rows)
            offsets = plan.offsets(wave)
            busy = int(np.count_nonzero(np.diff(offsets)))
            mine = self.waves[wave]
            arrived = Arrived(rows, torch.from_numpy(offsets).to(received.device), busy)
            mine.event = self.engine.streams.mark()
            mine.arrived = arrived

        self.engine.submit(arrive)

    def _linear1(self, step: Step) -> None:
        wave = self.waves[step.wave]
        self.engine.until(lambda: wave.arrived is not None)
        assert wave.arrived is not None
        self.engine.streams.join(wave.event)
        with self.engine.timed(step):
            wave.state = self.compute.linear1(step.wave, wave.arrived)

    def _linear2(self, step: Step) -> None:
        wave = self.waves[step.wave]
        assert wave.arrived is not None
        with self.engine.timed(step):
            results = self.compute.linear2(step.wave, wave.arrived, wave.state)
            wave.state = None
            count = results.shape[0]
            wave.back = self.given[self.given_rows : self.given_rows + count]
            self.given_rows += count
            order = self.plan.by_expert(step.wave)
            back = np.empty_like(order)
            back[order] = np.arange(order.size)
            torch.index_select(results, 0, torch.from_numpy(back).to(results.device), out=wave.back)

    def _give_back(self, step: Step) -> None:
        """Post a wave's results."""
        plan, back = self.plan, self.waves[step.wave].back
        assert back is not None
        coming = plan.coming(step.wave)
        self.results[plan.going(step.wave, self.rank)] = back[coming[self.rank]]
        exchange = self._post(
            GIVE_BACK,
            [Message(p, back[coming[p]].view(-1)) for p in self.others],
            [Message(p, self.results[plan.going(step.wave, p)].view(-1)) for p in self.others],
        )
        if exchange is not None:
            self.engine.submit(lambda: exchange.received(self.engine.deadline()))

    def _finish(self) -> None:
        for exchange in self.sent:
            exchange.sent(self.engine.deadline())
        self.finished.append(self.engine.streams.mark())

    def _post(self, channel: int, sends: list[Message], receives: list[Message]) -> Exchange | None:
        """Post the messages that hold something; None if none does."""
        sends, receives = ([m for m in messages if m.data.numel()] for messages in (sends, receives))
        if not sends and not receives:
            return None
        ready = self.engine.streams.mark()
        with self.engine.streams.communication():
            self.engine.streams.join(ready)
            exchange = self.engine.transport.post(channel, sends, receives)
        self.sent.append(exchange)
        return exchange
