"""TileLang's modulo scheduling problem, stated to z3 as SMT-LIB text.

The same problem as in ``tilelang.ascend.transform.z3_scheduler``, constraint by constraint in the same order, and the
same search, which here ends where z3 does not find even the longest schedule. TileLang states the problem by z3's
Python operators, each of which wraps, counts and checks its operands: that took longer than solving it. Schedules that
a programmer gave stages for are left to TileLang.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import z3

SEED, EFFORT = 42, 1_000_000
"""TileLang's: the solver's seed and, in z3's unit, how much it tries before an interval counts as too short."""

PIPES = tuple(1 << bit for bit in range(7))


@dataclass(frozen=True)
class Problem:
    """Tasks of a loop's body and what orders them; task i starts at ``k_i * interval + r_i``, ``0 <= r_i < interval``.

    Attributes:
        stages: most versions of a buffer.
        latencies, issue: cycles per task: until its result is there, until its pipe takes another.
        pipes: bit mask per task.
        data: (first, second, distance, latency): how long after the first, ``distance`` turns later, the second starts;
            ``-1 - b`` stands for as many turns as buffer b has versions.
        exclusive: pairs of tasks on one pipe.
        owners: (first, second, latency, latency back) of pairs that share storage.
        in_order: pairs whose r ascend.
        sizes: bytes per buffer.
        memories: (capacity, buffers ...) per memory.
        stage_order: pairs whose k ascend.
        one_window: whether the tasks of a pipe start within one interval.
    """

    stages: int
    latencies: Sequence[int]
    issue: Sequence[int]
    pipes: Sequence[int]
    data: Sequence[tuple[int, int, int, int]]
    exclusive: Sequence[tuple[int, int]]
    owners: Sequence[tuple[int, int, int, int]]
    in_order: Sequence[tuple[int, int]]
    sizes: Sequence[int]
    memories: Sequence[Sequence[int]]
    stage_order: Sequence[tuple[int, int]]
    one_window: bool


def schedule(problem: Problem) -> tuple[list[int], list[int], int]:
    """Start of each task, versions of each buffer, and the least interval that was found.

    Raises:
        RuntimeError: there are no tasks.
    """
    if not problem.latencies:
        raise RuntimeError("Z3 loop scheduling failed: n too small")
    context = z3.Context()
    least, most = max(problem.issue), max(sum(problem.latencies), sum(problem.issue)) + 1
    best = None
    # The longest interval is enough for one task after another. Where z3's effort does not suffice to find that, it
    # does not for shorter ones, and each would cost as much.
    if (starts := _starts(problem, most - 1, context)) is not None:
        best, most = (starts, most - 1), most - 1
        while least < most:
            interval = (least + most) // 2
            starts = _starts(problem, interval, context)
            if starts is None:
                least = interval + 1
            else:
                best, most = (starts, interval), interval
    if best is None:  # one task after another
        return _one_by_one(problem.latencies), [1] * len(problem.sizes), max(sum(problem.latencies), 1)
    return *_versions(problem, *best), best[1]


def _starts(problem: Problem, interval: int, context: z3.Context) -> list[int] | None:
    """Start times for an interval, the earliest stage being 0; nothing where z3 finds none."""
    solver = z3.Solver(ctx=context)
    solver.set("random_seed", SEED)
    solver.set("rlimit", EFFORT)
    solver.from_string("".join(_statements(problem, interval)))
    if solver.check() != z3.sat:
        return None
    model = solver.model()
    value = {variable.name(): model[variable] for variable in model.decls()}

    def of(name: str, task: int) -> int:
        found = value.get(f"{name}_{task}")
        return found.as_long() if isinstance(found, z3.IntNumRef) else 0  # one that nothing constrains

    tasks = range(len(problem.latencies))
    first = min(of("k", task) for task in tasks)
    return [(of("k", task) - first) * interval + of("r", task) for task in tasks]


def _statements(problem: Problem, interval: int) -> Iterator[str]:
    tasks, buffers = range(len(problem.latencies)), range(len(problem.sizes))
    for i in tasks:
        yield f"(declare-const k_{i} Int)(declare-const r_{i} Int)"
        yield f"(assert (>= k_{i} 0))(assert (>= r_{i} 0))(assert (< r_{i} {interval}))"
    start = [f"(+ (* k_{i} {interval}) r_{i})" for i in tasks]
    for a, b in problem.in_order:
        yield f"(assert (<= r_{a} r_{b}))"
    for i in buffers:
        yield f"(declare-const buf_{i} Int)(assert (>= buf_{i} 1))(assert (<= buf_{i} {problem.stages}))"
    for capacity, *held in problem.memories:
        if held:
            bytes_held = " ".join(f"(* buf_{i} {problem.sizes[i]})" for i in held)
            yield f"(assert (<= {f'(+ {bytes_held})' if len(held) > 1 else bytes_held} {capacity}))"
    for a, b, distance, latency in problem.data:
        turns = f"{_number(latency - interval * distance)}"
        if distance < 0:
            turns = f"(- {_number(latency)} (* {interval} buf_{-distance - 1}))"
        yield f"(assert (>= (- {start[b]} {start[a]}) {turns}))"
    apart = [(f"O_{a}_{b}", a, b, problem.issue[a], problem.issue[b]) for a, b in problem.exclusive if a < b]
    apart += [(f"Owner_{a}_{b}", a, b, there, back) for a, b, there, back in problem.owners]
    for name in dict.fromkeys(name for name, *_ in apart):  # a pair may share storage in several ways
        yield f"(declare-const {name} Bool)"
    for one in apart:
        yield from _either(*one, interval)
    for a, b in problem.stage_order:
        yield f"(assert (<= k_{a} k_{b}))"
    for pipe in PIPES if problem.one_window else ():
        group = [i for i in tasks if problem.pipes[i] & pipe]
        for position, a in enumerate(group):
            for b in group[position + 1 :]:
                yield f"(assert (< (- {start[a]} {start[b]}) {interval}))"
                yield f"(assert (< (- {start[b]} {start[a]}) {interval}))"


def _either(name: str, a: int, b: int, there: int, back: int, interval: int) -> Iterator[str]:
    """One before the other, ``there`` or ``back`` cycles apart, in this turn and around to the next."""
    forward, backward = f"(- r_{b} r_{a})", f"(- r_{a} r_{b})"
    yield f"(assert (=> {name} (>= {forward} {there})))(assert (=> {name} (>= (+ {backward} {interval}) {back})))"
    yield f"(assert (=> (not {name}) (>= {backward} {back})))"
    yield f"(assert (=> (not {name}) (>= (+ {forward} {interval}) {there})))"


def _number(value: int) -> str:
    return str(value) if value >= 0 else f"(- {-value})"


def _one_by_one(latencies: Sequence[int]) -> list[int]:
    starts = [0]
    for latency in latencies[:-1]:
        starts.append(starts[-1] + latency)
    return starts


def _versions(problem: Problem, starts: list[int], interval: int) -> tuple[list[int], list[int]]:
    """The starts, and as many versions of each buffer as its data needs under them."""
    versions = [1] * len(problem.sizes)
    for a, b, distance, latency in problem.data:
        if distance < 0:
            needed = math.ceil((latency + starts[a] - starts[b]) / interval)
            versions[-distance - 1] = max(versions[-distance - 1], needed)
    return starts, versions
