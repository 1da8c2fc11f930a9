"""An event-driven model: ranks that run a program, and a link out of each."""

from __future__ import annotations

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
    """

    linear1: NDArray[np.float64]
    linear2: NDArray[np.float64]
    dispatch: NDArray[np.float64]
    give_back: NDArray[np.float64]
    bandwidth: float
    latency: float = 0.0
    before: float = 0.0
    after: float = 0.0

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
    def link_seconds(self) -> float:
        """The busiest link's."""
        return float((self.dispatch + self.give_back).sum((0, 2)).max()) / self.bandwidth

    @property
    def bound(self) -> float:
        """The largest speed-up over serial that any overlap could reach: the sum of both over the larger."""
        larger = max(self.compute_seconds, self.link_seconds)
        return (self.compute_seconds + self.link_seconds) / larger if larger else 1.0


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
    """One rank's place in its program, its clock, and when its link is free."""

    def __init__(self, start: float) -> None:
        self.position = 0
        self.clock = start
        self.link = start


def simulate(program: Sequence[Step], loads: Loads) -> Timeline:
    """Run a program on every rank.

    A rank computes one thing at a time; what it posts leaves on its own link in the order posted, at full bandwidth,
    and arrives ``latency`` after its last byte. A wave with one rank only is taken as one of many alike: what it sends
    is what it receives.
    """
    ranks = [_Rank(loads.before) for _ in range(loads.ranks)]
    everyone = range(loads.ranks)
    arrived = np.zeros((2, loads.waves, loads.ranks))
    posted = np.zeros(loads.waves, dtype=int)
    timeline = Timeline(0.0)

    def post(source: int, step: Step) -> None:
        rank = ranks[source]
        kind = int(step.action == "give_back")
        nbytes = (loads.dispatch, loads.give_back)[kind][step.wave, source]
        begin = max(rank.clock, rank.link)
        end = begin
        for turn in everyone:  # the next rank first: so no two begin with the same
            target = (source + 1 + turn) % loads.ranks
            if nbytes[target]:
                end += nbytes[target] / loads.bandwidth
                arrived[kind, step.wave, target] = max(arrived[kind, step.wave, target], end + loads.latency)
        if end > begin:
            rank.link = end
            timeline.spans.append(Span(source, "link", step.action, step.wave, begin, end))
        posted[step.wave] += not kind

    def compute(source: int, step: Step) -> None:
        rank = ranks[source]
        if step.action == "linear1":
            rank.clock = max(rank.clock, arrived[0, step.wave, source])
        took = (loads.linear1 if step.action == "linear1" else loads.linear2)[source, step.wave]
        timeline.spans.append(Span(source, "compute", step.action, step.wave, rank.clock, rank.clock + took))
        rank.clock += took

    while any(rank.position < len(program) for rank in ranks):
        for source, rank in enumerate(ranks):
            while rank.position < len(program):
                step = program[rank.position]
                if step.action == "linear1" and posted[step.wave] < loads.ranks:
                    break  # what it waits for has not been sent: another rank is to go on first
                (post if step.action in ("dispatch", "give_back") else compute)(source, step)
                rank.position += 1
    ends = [max(rank.clock, arrived[1, :, r].max(initial=0.0)) + loads.after for r, rank in enumerate(ranks)]
    timeline.seconds = float(max(ends))
    return timeline
