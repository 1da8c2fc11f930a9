"""The three schedules as programs. The wave engine executes them and the model simulates them: one text for both.

A program is what one rank does, in order. ``dispatch`` and ``give_back`` only *post* a transfer, which then travels
beside what follows; ``linear1`` waits for the wave's tokens to arrive. Every rank posts in the same order, which
transports that match messages by order (NCCL, HCCL) need.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Action = Literal["dispatch", "linear1", "linear2", "give_back"]
SCHEDULES = ("serial", "two_stage", "waves")
AHEAD = 2
"""Waves whose tokens are under way or waiting: while one is computed, the next travels."""


AUTO = -1
"""The number that stands for ``waves="auto"``."""


class Step(NamedTuple):
    """One step of a program."""

    action: Action
    wave: int


def require_schedule(schedule: str) -> None:
    """Raise ``ValueError`` unless ``schedule`` is one of :data:`SCHEDULES`."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: given {schedule!r}, wanted one of {', '.join(map(repr, SCHEDULES))}")


def program(schedule: str, waves: int) -> tuple[Step, ...]:
    """What a rank does.

    Args:
        schedule: ``"serial"``: everything travels, everything is computed, everything returns. ``"two_stage"``: tokens
            travel beside the first product and results beside the second, with a stop between the two. ``"waves"``: all
            three go on at once, a wave apart.
        waves: pieces of the work, at least 1; ``"serial"`` has one whatever is given.
    """
    require_schedule(schedule)
    if waves < 1:
        raise ValueError(f"waves: given {waves}, wanted at least 1")
    if schedule == "serial":
        waves = 1
    steps = [Step("dispatch", wave) for wave in range(min(AHEAD, waves))]
    for wave in range(waves):
        steps.append(Step("linear1", wave))
        if wave + AHEAD < waves:  # before this wave's results: the next product waits for it, nothing for them
            steps.append(Step("dispatch", wave + AHEAD))
        if schedule != "two_stage":
            steps += [Step("linear2", wave), Step("give_back", wave)]
    if schedule == "two_stage":
        for wave in range(waves):
            steps += [Step("linear2", wave), Step("give_back", wave)]
    return tuple(steps)


def wave_argument(waves: int | str) -> int:
    """The argument ``waves`` as a number, :data:`AUTO` for ``"auto"``.

    Raises:
        ValueError: it is neither ``"auto"`` nor a positive number.
    """
    if waves == "auto":
        return AUTO
    if isinstance(waves, bool) or not isinstance(waves, int) or waves < 1:
        raise ValueError(f'waves: given {waves!r}, wanted "auto" or a number of at least 1')
    return waves
