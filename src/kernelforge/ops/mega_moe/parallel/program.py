"""One execution of a wave program: what is sent, sorted, computed and given back at each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..schedule import Step
from .engine import Engine
from .transport import DISPATCH, GIVE_BACK, Exchange, Message
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


def execute(
    engine: Engine,
    steps: Sequence[Step],
    plan: WavePlan,
    row_bytes: int,
    pack: Callable[[], torch.Tensor],
    compute: Compute,
    result_bytes: int,
) -> torch.Tensor:
    """Send rows to their experts' ranks, compute, and return the results.

    Args:
        engine: of this rank.
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
    with engine.guarded():
        run = _Run(engine, plan, row_bytes, compute, result_bytes)
        return run.execute(steps, pack())


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
