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
    """One wave under way.

    Attributes:
        tokens, results: what is to be received; None if nothing is.
        arrived: the tokens, sorted, once they are there.
        places: where each row that came is among the sorted ones.
        event: after which ``arrived`` can be read.
        state: what the first half of the products hands to the second.
        back: the results, in the order in which rows came.
    """

    tokens: Exchange | None = None
    results: Exchange | None = None
    arrived: Arrived | None = None
    places: torch.Tensor | None = None
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

    def run(
        self,
        steps: Sequence[Step],
        plan: WavePlan,
        row_bytes: int,
        pack: Callable[[], torch.Tensor],
        compute: Compute,
        result_bytes: int,
    ) -> torch.Tensor:
        """Send rows to their experts' ranks, compute, and return the results.

        Args:
            steps: the program.
            plan: the same on all ranks.
            row_bytes: bytes of a row on its way to an expert.
            pack: gives the rows, uint8 [plan.rows, row_bytes], as they travel; not to be changed before this returns.
                Called once other ranks' messages are waited for.
            compute: what to do with a wave.
            result_bytes: bytes of a row that comes back.

        Returns:
            uint8 [plan.rows, result_bytes], where the rows were; valid until the next call.

        Raises:
            MoeCommunicationError: the exchange failed and is closed; or whatever ``compute`` raised, likewise.
        """
        with self.guarded():
            run = _Run(self, plan, row_bytes, compute, result_bytes)
            return run.execute(steps, pack())

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Close the exchange if anything fails inside."""
        try:
            yield
        except BaseException as error:
            self.owes_error = False
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
            self._fail(PeerLost(f"rank {peer} gave up: {reason}"))
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


class _Run:
    """One execution of a program."""

    def __init__(self, engine: Engine, plan: WavePlan, row_bytes: int, compute: Compute, result_bytes: int) -> None:
        self.engine, self.plan, self.compute = engine, plan, compute
        self.rank = engine.transport.rank
        self.others = peers(self.rank, engine.transport.size)
        self.waves = [_Wave() for _ in range(plan.waves)]
        self.coming = [plan.coming(wave) for wave in range(plan.waves)]
        self.received = _split(engine.buffers.take("received", plan.hosted, row_bytes), self.coming)
        self.given = _split(engine.buffers.take("given", plan.hosted, result_bytes), self.coming)
        self.results = engine.buffers.take("results", plan.rows, result_bytes)
        self.sent: list[Exchange] = []
        self.finished: list[Any] = []
        if engine.transport.early:
            engine.submit(self._expect)

    def execute(self, steps: Sequence[Step], rows: torch.Tensor) -> torch.Tensor:
        self.rows = rows
        do = {
            "dispatch": self._dispatch,
            "linear1": self._linear1,
            "linear2": self._linear2,
            "give_back": self._give_back,
        }
        self.engine.handling = 0.0
        for step in steps:
            begin = time.perf_counter()
            do[step.action](step)
            if step.action in ("dispatch", "give_back"):
                self.engine.handling += time.perf_counter() - begin
        self.engine.submit(self._finish)
        self.engine.until(lambda: bool(self.finished))
        self.engine.streams.join(self.finished[0])
        return self.results

    def _expect(self) -> None:
        """Wait for all messages from now on: then none waits at its sender for word that it may come."""
        for number, wave in enumerate(self.waves):
            wave.tokens = self._receive(DISPATCH, self._tokens_from(number))
        for number, wave in enumerate(self.waves):
            wave.results = self._receive(GIVE_BACK, self._results_from(number))

    def _receive(self, channel: int, messages: list[Message]) -> Exchange | None:
        return self.engine.transport.post(channel, [], messages) if messages else None

    def _tokens_from(self, wave: int) -> list[Message]:
        return _filled(self.others, lambda peer: self.received[wave][self.coming[wave][peer]])

    def _results_from(self, wave: int) -> list[Message]:
        return _filled(self.others, lambda peer: self.results[self.plan.going(wave, peer)])

    def _dispatch(self, step: Step) -> None:
        """Post a wave's tokens, and have the communication thread sort them when they are there."""
        number, plan = step.wave, self.plan
        wave, received = self.waves[number], self.received[number]
        received[self.coming[number][self.rank]] = self.rows[plan.going(number, self.rank)]
        sends = _filled(self.others, lambda peer: self.rows[plan.going(number, peer)])
        posted = self._post(DISPATCH, sends, self._tokens_from(number))

        def arrive() -> None:
            if (exchange := wave.tokens or posted) is not None:
                exchange.received(self.engine.deadline())
            order = torch.from_numpy(plan.by_expert(number)).to(received.device)
            rows = self.engine.buffers.take(f"rows {number % 2}", *received.shape)
            torch.index_select(received, 0, order, out=rows)
            wave.places = torch.empty_like(order)
            wave.places[order] = torch.arange(order.shape[0], device=order.device)
            offsets = plan.offsets(number)
            busy = int(np.count_nonzero(np.diff(offsets)))
            arrived = Arrived(rows, torch.from_numpy(offsets).to(received.device), busy)
            wave.event = self.engine.streams.mark()
            wave.arrived = arrived

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
        assert wave.places is not None
        with self.engine.timed(step):
            results = self.compute.linear2(step.wave, wave.arrived, wave.state)
            wave.state = None
            wave.back = self.given[step.wave]
            torch.index_select(results, 0, wave.places, out=wave.back)

    def _give_back(self, step: Step) -> None:
        """Post a wave's results."""
        number, plan = step.wave, self.plan
        wave, coming = self.waves[number], self.coming[number]
        back = wave.back
        assert back is not None
        self.results[plan.going(number, self.rank)] = back[coming[self.rank]]
        sends = _filled(self.others, lambda peer: back[coming[peer]])
        posted = self._post(GIVE_BACK, sends, self._results_from(number))

        def come_back() -> None:
            if (exchange := wave.results or posted) is not None:
                exchange.received(self.engine.deadline())

        self.engine.submit(come_back)

    def _finish(self) -> None:
        for exchange in self.sent:
            exchange.sent(self.engine.deadline())
        self.finished.append(self.engine.streams.mark())

    def _post(self, channel: int, sends: list[Message], receives: list[Message]) -> Exchange | None:
        """Post what goes, and what comes unless it is waited for already; None if nothing does."""
        if self.engine.transport.early:
            receives = []
        if not sends and not receives:
            return None
        ready = self.engine.streams.mark()
        with self.engine.streams.communication():
            self.engine.streams.join(ready)
            exchange = self.engine.transport.post(channel, sends, receives)
        self.sent.append(exchange)
        return exchange


def _split(buffer: torch.Tensor, coming: Sequence[Sequence[slice]]) -> list[torch.Tensor]:
    """A buffer of all waves' rows, wave by wave."""
    return list(buffer.split([wave[-1].stop for wave in coming]))


def _filled(others: Sequence[int], part: Callable[[int], torch.Tensor]) -> list[Message]:
    """For each other rank its part, without those that hold nothing."""
    return [Message(peer, data.view(-1)) for peer in others if (data := part(peer)).numel()]
