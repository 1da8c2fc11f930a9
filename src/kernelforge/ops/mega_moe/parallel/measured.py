"""Rates measured while layers run: what ``waves="auto"`` is chosen by."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray

from ..schedule import Rates
from ..schedule.model import Work, best_waves, wave_counts
from .transport import AGREE, Message, Transport
from .waves import peers

SAMPLES = 64
UNMEASURED_WAVES = 4
"""Until a first call has been measured."""
_SMALL, _LARGE = 1 << 12, 1 << 20


class Measured:
    """Seconds that waves took on this rank, and the costs per row, expert and wave that explain them best.

    What a wave's messages cost beside its products is measured apart and is part of the cost per wave: without it many
    waves would seem to cost nothing where a call is short.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[int, int, float]] = deque(maxlen=SAMPLES)
        self._handled: deque[float] = deque(maxlen=SAMPLES)
        self._fitted: tuple[float, float, float] = (0.0, 0.0, 0.0)
        self._new = 0

    def add(self, rows: int, touched: int, seconds: float) -> None:
        """A wave of ``rows`` for ``touched`` experts took ``seconds``."""
        if rows:
            self._samples.append((rows, touched, seconds))
            self._new += 1

    def add_handling(self, seconds: float) -> None:
        """Posting and sorting a wave's messages took this rank's computing thread ``seconds``."""
        self._handled.append(seconds)

    def costs(self) -> tuple[float, float, float]:
        """Seconds per row, per expert with rows, per wave; zeros before anything was measured."""
        if self._new and (self._new >= SAMPLES // 4 or not any(self._fitted)):
            row, expert, wave = _fit(np.array(self._samples, dtype=np.float64))
            handling = float(np.median(self._handled)) if self._handled else 0.0
            self._fitted = row, expert, wave + handling
            self._new = 0
        return self._fitted


def _fit(samples: NDArray[np.float64]) -> tuple[float, float, float]:
    """The least-squares costs among those that are not negative."""
    features = np.column_stack([samples[:, 0], samples[:, 1], np.ones(len(samples))])
    seconds = samples[:, 2]
    best, least = np.zeros(3), np.inf
    for size in (1, 2, 3):
        for chosen in map(list, itertools.combinations(range(3), size)):
            costs = np.zeros(3)
            costs[chosen] = np.linalg.lstsq(features[:, chosen], seconds, rcond=None)[0]
            error = float(((features @ costs - seconds) ** 2).sum())
            # One more term has to explain clearly more: proportional samples fit any of them.
            if (costs >= 0).all() and error < 0.9 * least:
                best, least = costs, error
    return float(best[0]), float(best[1]), float(best[2])


def measure_link(transport: Transport, device: torch.device, timeout: float, rounds: int = 3) -> tuple[float, float]:
    """Bandwidth (bytes per second out of this rank) and latency (seconds), by messages to all other ranks at once.

    There and back: what a rank sends the second time answers what it received, so that no rank finds the link faster
    than it is because another one began before it.
    """
    others = peers(transport.rank, transport.size)
    seconds = []
    for size in (_SMALL, _LARGE):
        outgoing = torch.zeros(size, dtype=torch.uint8, device=device)
        incoming = [torch.empty_like(outgoing) for _ in others]
        taken = []
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(2):
                exchange = transport.post(
                    AGREE,
                    [Message(peer, outgoing) for peer in others],
                    [Message(peer, data) for peer, data in zip(others, incoming, strict=True)],
                )
                deadline = time.monotonic() + timeout
                exchange.received(deadline)
                exchange.sent(deadline)
                if incoming[0].is_cuda:
                    torch.cuda.synchronize(device)
            taken.append((time.perf_counter() - begin) / 2)
        seconds.append(min(taken))
    small, large = seconds
    bandwidth = len(others) * (_LARGE - _SMALL) / max(large - small, 1e-9)
    return bandwidth, max(small - len(others) * _SMALL / bandwidth, 0.0)


def choose_waves(
    counts: NDArray[np.int64],
    sizes: tuple[int, int],
    costs: tuple[float, float, float],
    seconds_per_byte: float,
    latency: float,
) -> int:
    """The wave count for these counts [ranks, experts]; the same on all ranks, given the same.

    Args:
        sizes: bytes of a row on its way to an expert, and back.
        costs: seconds per row, per expert with rows, per wave (its messages' handling included).
    """
    ranks, experts = counts.shape
    local = experts // ranks
    if ranks == 1:
        return 1
    if not any(costs):
        return min(UNMEASURED_WAVES, local)
    by_host = counts.reshape(ranks, ranks, local)  # source, host, expert
    own = np.einsum("rre->r", by_host)
    hosted, touched = by_host.sum((0, 2)), (by_host.sum(0) > 0).sum(1)
    busiest = int((costs[0] * hosted + costs[1] * touched).argmax())
    load = hosted[busiest], touched[busiest], (counts.sum(1) - own).max(), (hosted - own).max()
    most = min(local, max(1, int(touched.max())))  # more would be empty
    rounded = (_rounded(float(value)) for value in (*load, *costs, max(seconds_per_byte, 1e-15), latency))
    return _choose(*rounded, sizes, most)


@functools.lru_cache(maxsize=4096)
def _choose(
    rows: float,
    touched: float,
    rows_out: float,
    rows_back: float,
    row_seconds: float,
    expert_seconds: float,
    wave_seconds: float,
    seconds_per_byte: float,
    latency: float,
    sizes: tuple[int, int],
    most: int,
) -> int:
    rates = Rates(row_seconds, expert_seconds, 1 / seconds_per_byte, latency, wave_seconds)
    return best_waves(Work(rows, touched, rows_out, rows_back, 0.0), rates, sizes, wave_counts(most))


def _rounded(value: float) -> float:
    """To an eighth of an octave: the choice is no finer, and is then found for most calls without being modelled."""
    return 2 ** (round(8 * math.log2(value)) / 8) if value > 0 else 0.0
