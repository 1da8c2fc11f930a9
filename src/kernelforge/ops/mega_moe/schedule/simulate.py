"""An event-driven model: ranks that run a program, and a link out of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .program import Step


@dataclass(frozen=True)
class Loads:
    """What each wave costs.

    Attributes:
        linear1, linear2: seconds of each product, [ranks, waves].
        dispatch, give_back: bytes that leave rank s for rank r, [waves, ranks s, ranks r].
        bandwidth: bytes per second out of a rank.
        latency: seconds from the last byte sent to its arrival.
        before, after: seconds on every rank before the first step and after the last result (agreeing on counts and
            quantizing; adding the slots up).
        processors: ranks that can compute at once in the seconds above; more of them share what there is. Infinite
            where each has its own.
    """

    linear1: NDArray[np.float64]
    linear2: NDArray[np.float64]
    dispatch: NDArray[np.float64]
    give_back: NDArray[np.float64]
    bandwidth: float
    latency: float = 0.0
    before: float = 0.0
    after: float = 0.0
    processors: float = math.inf

    @property
    def ranks(self) -> int:
        return int(self.linear1.shape[0])

    @property
    def waves(self) -> int:
        return int(self.linear1.shape[1])

    @property
    def compute_seconds(self) -> float:
        """The busiest rank's."""
        return float((self.linear1 + self.linear2).sum(1).max())

    @property
    def shared_compute_seconds(self) -> float:
        """The least in which all ranks' products can be done: the busiest rank's, or all of them on the processors."""
        return max(self.compute_seconds, float((self.linear1 + self.linear2).sum()) / self.processors)

    @property
    def link_seconds(self) -> float:
        """The busiest link's."""
        return float((self.dispatch + self.give_back).sum((0, 2)).max()) / self.bandwidth

    @property
    def bound(self) -> float:
        """The largest speed-up over serial that any overlap could reach: the sum of both over the larger."""
        compute = self.shared_compute_seconds
        larger = max(compute, self.link_seconds)
        return (compute + self.link_seconds) / larger if larger else 1.0


class Span(NamedTuple):
    """Something that took a while. ``lane`` is ``"compute"`` or ``"link"``; times are seconds from the start."""

    rank: int
    lane: str
    action: str
    wave: int
    start: float
    end: float


@dataclass
class Timeline:
    """Everything that happened, and how long it took."""

    seconds: float
    spans: list[Span] = field(default_factory=list)

    def busy(self, lane: str, rank: int = 0) -> float:
        """Seconds in which the lane was at work."""
        return sum(span.end - span.start for span in self.spans if (span.lane, span.rank) == (lane, rank))


class _Rank:
    """One rank's place in its program, what is left of what it computes, and when its link is free."""

    def __init__(self, start: float) -> None:
        self.position = 0
        self.left = 0.0
        self.begun: float | None = None
        self.link = start
        self.ended = start


def simulate(program: Sequence[Step], loads: Loads) -> Timeline:
    """Run a program on every rank.

    A rank computes one thing at a time; what it posts leaves on its own link in the order posted, at full bandwidth,
    and arrives ``latency`` after its last byte. A wave with one rank only is taken as one of many alike: what it sends
    is what it receives. Ranks that compute at the same time share ``processors`` evenly, if they are more.
    """
    return _Simulation(program, loads).run()


class _Simulation:
    def __init__(self, program: Sequence[Step], loads: Loads) -> None:
        self.program, self.loads, self.now = program, loads, loads.before
        self.ranks = [_Rank(self.now) for _ in range(loads.ranks)]
        # Lists: reading single elements of arrays takes most of the time otherwise.
        self.work = {"linear1": loads.linear1.tolist(), "linear2": loads.linear2.tolist()}
        self.taken = {
            kind: (nbytes / loads.bandwidth).tolist()
            for kind, nbytes in (("dispatch", loads.dispatch), ("give_back", loads.give_back))
        }
        self.arrived = {kind: [[0.0] * loads.ranks for _ in range(loads.waves)] for kind in self.taken}
        self.posted = [0] * loads.waves
        self.timeline = Timeline(0.0)

    def run(self) -> Timeline:
        while True:
            pending = True
            while pending:  # what one rank posts may let another go on
                pending = any([self._advance(source) for source in range(len(self.ranks))])
            if not self._pass_time():
                break
        back = map(max, zip(*self.arrived["give_back"], strict=True))
        ends = [max(rank.ended, there) + self.loads.after for rank, there in zip(self.ranks, back, strict=True)]
        self.timeline.seconds = max(ends)
        return self.timeline

    def _advance(self, source: int) -> bool:
        """Do all that a rank can do now without time passing; whether it posted anything."""
        rank, posted = self.ranks[source], False
        while rank.begun is None and rank.position < len(self.program):
            step = self.program[rank.position]
            if step.action in self.taken:
                self._post(source, step)
                rank.position += 1
                posted = True
            elif step.action == "linear1" and not self._there(source, step.wave) <= self.now:
                break
            else:
                rank.left, rank.begun = self.work[step.action][source][step.wave], self.now
        return posted

    def _there(self, source: int, wave: int) -> float:
        """When a wave's tokens are all there; infinite while one has not been sent."""
        return self.arrived["dispatch"][wave][source] if self.posted[wave] == len(self.ranks) else math.inf

    def _post(self, source: int, step: Step) -> None:
        rank, size = self.ranks[source], len(self.ranks)
        taken, arrived = self.taken[step.action][step.wave][source], self.arrived[step.action][step.wave]
        begin = end = max(self.now, rank.link)
        for turn in range(size):  # the next rank first: so no two begin with the same
            target = (source + 1 + turn) % size
            if taken[target]:
                end += taken[target]
                arrived[target] = max(arrived[target], end + self.loads.latency)
        if end > begin:
            rank.link = end
            self.timeline.spans.append(Span(source, "link", step.action, step.wave, begin, end))
        self.posted[step.wave] += step.action == "dispatch"

    def _pass_time(self) -> bool:
        """Go on to the next moment at which something ends or arrives; false if there is none."""
        computing = [rank for rank in self.ranks if rank.begun is not None]
        speed = min(1.0, self.loads.processors / max(len(computing), 1))
        moments = [self.now + rank.left / speed for rank in computing]
        for source, rank in enumerate(self.ranks):
            if rank.begun is None and rank.position < len(self.program):
                moments.append(self._there(source, self.program[rank.position].wave))
        later = min(moments, default=math.inf)
        if later == math.inf:
            return False
        for source, rank in enumerate(self.ranks):
            if rank.begun is None:
                continue
            rank.left -= (later - self.now) * speed
            if rank.left <= 1e-12 * later:
                step = self.program[rank.position]
                self.timeline.spans.append(Span(source, "compute", step.action, step.wave, rank.begun, later))
                rank.position += 1
                rank.begun, rank.ended = None, later
        self.now = later
        return True
