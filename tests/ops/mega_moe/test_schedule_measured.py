"""The schedule model against the wave engine on processes: products that take a known time, over a link of known speed.

Products sleep, for so long that what the engine does on a loaded machine matters little, and as load can only add time,
the fastest of a few runs counts; the benchmark measures real products
(``python -m kernelforge.ops.mega_moe.parallel.benchmark``).
"""

from __future__ import annotations

import numpy as np
import pytest
from gloo_ranks import Ranks
from moe_ranks import run_slept

from kernelforge.ops.mega_moe.schedule import Loads, program, simulate

ROWS, ROW, RESULT, LOCAL = 8, 2000, 8000, 6
SECONDS = 0.4
"""Of all products, and of all messages."""
RUNS = 2
CASES = [("serial", 1), ("two_stage", 3), ("waves", 3), ("waves", 6)]


def _loads(size: int, waves: int, bandwidth: float, latency: float) -> Loads:
    products = np.full((size, waves), SECONDS / waves)
    away = np.tile(1.0 - np.eye(size), (waves, 1, 1)) * (ROWS * LOCAL / waves)
    return Loads(products * 2 / 3, products / 3, away * ROW, away * RESULT, bandwidth, latency)


@pytest.mark.parametrize("size", [2, 4])
def test_the_model_predicts_what_the_engine_does(size):
    latency = 1e-3
    bandwidth = (size - 1) * ROWS * LOCAL * (ROW + RESULT) / SECONDS
    counts = np.full((size, size * LOCAL), ROWS)
    with Ranks(size) as ranks:
        given = (counts, CASES, SECONDS, (bandwidth, latency), (ROW, RESULT))
        measured = [ranks.call(run_slept, *given) for _ in range(RUNS)]  # [run][rank][case]
    slowest = dict(zip(CASES, np.min(np.max(measured, 1), 0), strict=True))
    for (schedule, waves), seconds in slowest.items():
        predicted = simulate(program(schedule, waves), _loads(size, waves, bandwidth, latency)).seconds
        assert predicted == pytest.approx(seconds, rel=0.15), (schedule, waves)
    assert slowest["serial", 1] > 1.4 * slowest["waves", 6]
    assert slowest["two_stage", 3] > slowest["waves", 6]
