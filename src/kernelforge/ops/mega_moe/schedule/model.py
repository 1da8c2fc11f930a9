"""How long a mixture of experts takes under each schedule, and how many waves are best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .program import SCHEDULES, program
from .rates import Rates, dispatch_row, result_row
from .simulate import Loads, Timeline, simulate

MOST_WAVES = 32
LINEAR1_SHARE = 2 / 3
"""Of an expert's products: [2 * inter, hidden] against [hidden, inter]."""


@dataclass(frozen=True)
class MoeSchedule:
    """The outcome of :func:`moe_schedule`.

    Attributes:
        waves: the wave count that ``"waves"`` is best with (or the one that was asked for).
        timelines: by schedule, with that wave count.
        by_waves: seconds of ``"waves"`` for every count that was tried.
        loads: the work of each wave.
        bound: the largest speed-up over serial that any overlap could reach.
    """

    waves: int
    timelines: dict[str, Timeline]
    by_waves: dict[int, float]
    loads: Loads
    bound: float

    def seconds(self, schedule: str = "waves") -> float:
        """Time of a schedule."""
        return self.timelines[schedule].seconds

    def speedup(self, over: str = "serial") -> float:
        """Of waves over another schedule."""
        return self.seconds(over) / self.seconds("waves")


def moe_schedule(
    tokens: int,
    topk: int,
    hidden: int,
    inter: int,
    experts: int,
    ranks: int,
    *,
    flops: float | None = None,
    bandwidth: float | None = None,
    latency: float = 0.0,
    memory_bandwidth: float = float("inf"),
    rates: Rates | None = None,
    waves: int | None = None,
) -> MoeSchedule:
    """Model an expert-parallel layer under the serial, two-stage and wave schedules.

    Tokens are taken as spread evenly over experts. The model runs the very programs that the wave engine runs
    (``schedule.program``) on a clock: a rank computes one thing at a time, its link sends one message at a time.

    Args:
        tokens: on each rank.
        topk: experts per token.
        hidden, inter: an expert's sizes.
        experts: in all; a multiple of ``ranks``.
        ranks: expert-parallel ranks.
        flops: operations per second that a rank's products reach, a multiply-add counted twice.
        bandwidth: bytes per second out of a rank.
        latency: seconds from the last byte sent to its arrival.
        memory_bandwidth: bytes per second at which a rank reads weights.
        rates: measured rates instead of the four above.
        waves: this wave count instead of the best.

    Returns:
        The best wave count, the timelines, the speed-ups and their bound.

    Raises:
        ValueError: a size is not positive, ``experts`` is no multiple of ``ranks``, or rates are missing.
    """
    sizes = {"topk": topk, "hidden": hidden, "inter": inter, "experts": experts, "ranks": ranks}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}: given {value}, wanted at least 1")
    if tokens < 0:
        raise ValueError(f"tokens: given {tokens}, wanted 0 or more")
    if hidden % 32 or inter % 32:
        raise ValueError(f"hidden, inter: given {hidden}, {inter}, wanted multiples of 32")
    if experts % ranks:
        raise ValueError(f"experts: given {experts}, wanted a multiple of ranks = {ranks}")
    if topk > experts:
        raise ValueError(f"topk: given {topk}, wanted at most experts = {experts}")
    if rates is None:
        if flops is None or bandwidth is None:
            raise ValueError("flops, bandwidth: both are wanted, or rates")
        rates = Rates.of_hardware(
            hidden, inter, flops=flops, bandwidth=bandwidth, latency=latency, memory_bandwidth=memory_bandwidth
        )
    local = experts // ranks
    if waves is not None and waves < 1:
        raise ValueError(f"waves: given {waves}, wanted at least 1")
    rows = tokens * topk
    touched = local * (1 - (1 - topk / experts) ** (tokens * ranks))
    cost = Work(rows, touched, rows * (ranks - 1) / ranks, rows * (ranks - 1) / ranks, tokens)
    row_sizes = dispatch_row(hidden), result_row(hidden)
    by_waves = {
        count: simulate(program("waves", count), cost.loads(count, rates, row_sizes)).seconds
        for count in ([waves] if waves is not None else wave_counts(local))
    }
    best = min(by_waves, key=lambda count: (by_waves[count], count))
    timelines = {
        schedule: simulate(program(schedule, best), cost.loads(1 if schedule == "serial" else best, rates, row_sizes))
        for schedule in SCHEDULES
    }
    loads = cost.loads(best, rates, row_sizes)
    return MoeSchedule(best, timelines, by_waves, loads, loads.bound)


def wave_counts(local: int) -> list[int]:
    """The wave counts worth a try for ``local`` experts per rank: a wave holds at least one."""
    return [count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if count <= min(local, MOST_WAVES)] or [1]


@dataclass(frozen=True)
class Work:
    """The busiest rank's work: rows it computes, its experts with at least one row, rows out and back, its tokens."""

    rows: float
    touched: float
    rows_out: float
    rows_back: float
    tokens: float

    def loads(self, waves: int, rates: Rates, sizes: tuple[int, int]) -> Loads:
        """Cut evenly, as seen from one rank of many alike; ``sizes``: bytes of a row on its way out, and back."""
        seconds = self.rows * rates.row_seconds + self.touched * rates.expert_seconds
        each = np.full((1, waves), seconds / waves)
        fixed = rates.wave_seconds / 2
        return Loads(
            linear1=LINEAR1_SHARE * each + fixed,
            linear2=(1 - LINEAR1_SHARE) * each + fixed,
            dispatch=np.full((waves, 1, 1), self.rows_out * sizes[0] / waves),
            give_back=np.full((waves, 1, 1), self.rows_back * sizes[1] / waves),
            bandwidth=rates.bandwidth,
            latency=rates.latency,
            before=rates.agree_seconds + self.tokens * rates.token_seconds / 2,
            after=self.tokens * rates.token_seconds / 2,
        )


def best_waves(work: Work, rates: Rates, sizes: tuple[int, int], candidates: Sequence[int]) -> int:
    """The wave count with the least modelled time; the smallest among equals. ``sizes`` as in :meth:`Work.loads`."""
    return min(
        candidates,
        key=lambda count: (simulate(program("waves", count), work.loads(count, rates, sizes)).seconds, count),
    )
