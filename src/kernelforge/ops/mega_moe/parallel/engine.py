"""The wave engine: runs a program on this rank, computing in the caller's thread while another one communicates."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
    """

    rows: torch.Tensor
    offsets: torch.Tensor


class Compute(Protocol):
    """What is done with a wave."""

    def linear1(self, wave: int, arrived: Arrived) -> Any:
        """The first half; its result is handed to the second. ``arrived.rows`` is overwritten two waves later."""

    def linear2(self, wave: int, arrived: Arrived, state: Any) -> torch.Tensor:
        """The second half: the rows to give back, uint8 [n, result_bytes], in the order they came."""


@dataclass
class _Wave:
    """One wave under way."""

    ready: threading.Event = field(default_factory=threading.Event)
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
        self.calls = 0
        self.trace: list[Span] | None = None
        """Set to a list to have computing and waiting recorded, in seconds of ``time.monotonic``."""
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def call(self) -> Iterator[int]:
        """One call at a time; any communication error or failure inside it closes the exchange for all ranks."""
        if not self._lock.acquire(timeout=self.timeout):
            raise MoeCommunicationError("another thread's call on this group does not end")
        try:
            if self.closed:
                raise PeerLost(f"this exchange was closed by an earlier error: {self.closed}")
            self.calls += 1
            yield self.calls
        finally:
            self._lock.release()

    def close(self, reason: str) -> None:
        """Give up: let no other rank wait for this one."""
        if self.closed:
            return
        self.closed = reason
        self.transport.abort()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(self.timeout)
            self._thread = None
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
        try:
            return _Run(self, plan, rows, compute, result_bytes).execute(steps)
        except BaseException as error:
            self.close(f"{type(error).__name__}: {error}")
            raise

    def submit(self, job: Callable[[], None]) -> None:
        """Give the communication thread something to do, after all it was given before."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=_communicate, args=(self._jobs, self.streams), name="kernelforge-moe", daemon=True
            )
            self._thread.start()
            weakref.finalize(self, self._jobs.put, None)
        self._jobs.put(job)

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
        self.finished = threading.Event()
        self.failure: BaseException | None = None

    def execute(self, steps: Sequence[Step]) -> torch.Tensor:
        do = {
            "dispatch": self._dispatch,
            "linear1": self._linear1,
            "linear2": self._linear2,
            "give_back": self._give_back,
        }
        try:
            for step in steps:
                do[step.action](step)
            self._submit(self._finish)
            self._await(self.finished)
        except MoeCommunicationError:
            if self.failure is not None:  # it came first, and closed what this thread was about to use
                raise self.failure from None
            raise
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
            offsets = torch.from_numpy(plan.offsets(wave)).to(received.device)
            mine = self.waves[wave]
            mine.arrived = Arrived(rows, offsets)
            mine.event = self.engine.streams.mark()
            mine.ready.set()

        self._submit(arrive)

    def _linear1(self, step: Step) -> None:
        wave = self.waves[step.wave]
        self._await(wave.ready)
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
            self._submit(lambda: exchange.received(self.engine.deadline()))

    def _finish(self) -> None:
        for exchange in self.sent:
            exchange.sent(self.engine.deadline())
        self.finished_event = self.engine.streams.mark()
        self.finished.set()

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

    def _submit(self, job: Callable[[], None]) -> None:
        def guarded() -> None:
            if self.failure is not None:
                return
            try:
                job()
            except BaseException as error:
                self.failure = error
                self.engine.transport.abort()
                for wave in self.waves:
                    wave.ready.set()
                self.finished.set()

        self.engine.submit(guarded)

    def _await(self, event: threading.Event) -> None:
        # The communication thread has deadlines of its own for every wait on a rank, and sets every event when it
        # fails.
        event.wait()
        if self.failure is not None:
            raise self.failure
        if event is self.finished:
            self.engine.streams.join(self.finished_event)
