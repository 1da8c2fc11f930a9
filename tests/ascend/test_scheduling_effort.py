"""What is decided before TileLang's scheduler starts, and when our search for a schedule ends."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import ascend_pass_kernels as small

from kernelforge_ascend import modulo_schedule, passes
from kernelforge_ascend.modulo_schedule import Problem, schedule


def conditions(function) -> list[str]:
    return [line.strip() for line in function.script().splitlines() if line.strip().startswith("if ")]


def test_decide_conditions_golden():
    before = small.certain()
    for step in passes.PIPELINE[: passes.PIPELINE.index(passes.decide_conditions)]:
        before = step(before)
    assert conditions(before) == ["if row[0] * row[0] >= 0:", "if row[0] > 1:"]
    after = passes.decide_conditions(before)
    assert conditions(after) == ["if 1 < row[0]:"]
    copies = [function.script().count("T.ascend_copy(") for function in (before, after)]
    assert copies == [3, 3], "what stood under the condition stays"


def problem() -> Problem:
    """Three tasks, each of which waits for the one before, on two pipes."""
    return Problem(
        stages=2,
        latencies=[5, 7, 3],
        issue=[5, 7, 3],
        pipes=[1, 2, 1],
        data=[(0, 1, 0, 5), (1, 2, 0, 7)],
        exclusive=[(0, 2), (2, 0)],
        owners=[],
        in_order=[],
        sizes=[],
        memories=[],
        stage_order=[],
        one_window=False,
    )


def _asked(monkeypatch, answer) -> list[int]:
    asked: list[int] = []
    monkeypatch.setattr(
        modulo_schedule, "_starts", lambda problem, interval, context: asked.append(interval) or answer(interval)
    )
    return asked


def test_the_search_ends_where_even_the_longest_schedule_is_not_found(monkeypatch):
    asked = _asked(monkeypatch, lambda interval: None)
    assert schedule(problem()) == ([0, 5, 12], [], 15), "one task after another"
    assert asked == [15]


def test_the_search_halves_what_is_left(monkeypatch):
    asked = _asked(monkeypatch, lambda interval: [0, 5, 12] if interval >= 9 else None)
    assert schedule(problem()) == ([0, 5, 12], [], 9)
    assert asked == [15, 11, 9, 8]


def test_the_least_interval_is_found():
    starts, versions, interval = schedule(problem())
    assert (versions, interval) == ([], 8), "the first pipe is taken for 5 and 3 cycles"
    assert starts[1] - starts[0] >= 5
    assert starts[2] - starts[1] >= 7
