"""Cross-core flags, so that each has one waiting pipe.

A flag of a core counts arrivals; a pipe that waits takes one. TileLang 0.1.15 gives one flag to several
synchronizations when its 16 run out, and asks only that one is waited for before the next is set. Where two *pipes*
wait, the second may wait already when the first arrival comes, and take it: the kernel deadlocks. Here such kernels get
their flags anew.

Arrivals of one pipe happen in program order, and so do the waits of one. So synchronizations between the same two pipes
may share a flag wherever their arrivals and their waits come in the same order, and need not alternate.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tilelang.ascend.transform as stages
from tilelang import tvm
from tvm import tirx

from .rewriter import LoweringError, Rewriter, on_functions, op_name, walk

FLAGS = 16
"""Per vector core; the cube core adds 16 for the second one."""

COUNT = 15
"""Arrivals that a flag holds."""

TRACES = 32
"""Executions, each with other numbers of turns and other branches, on which orders are compared."""

ARRIVE, WAIT = "tl.ascend_cross_core_set_flag", "tl.ascend_cross_core_wait_flag"
CUBE, VECTOR = "CUBE", "VECTOR"

_INTEGER: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "FloorDiv": operator.floordiv,
    "FloorMod": operator.mod,
    "tirx.bitwise_and": operator.and_,
}


@dataclass(frozen=True)
class _Step:
    """One statement that sets a flag or waits for one."""

    arrives: bool
    core: str
    pipe: str
    flag: Any

    @property
    def direction(self) -> str:
        """The core that waits."""
        return self.core if not self.arrives else (VECTOR if self.core == CUBE else CUBE)


def _is_step(node: Any) -> bool:
    return isinstance(node, tirx.Evaluate) and op_name(node.value) in (ARRIVE, WAIT)


def _has_steps(node: Any) -> bool:
    found: list[bool] = []
    walk(node, lambda n: found.append(True) if _is_step(n) else None)
    return bool(found)


class _Program(Rewriter):
    """The steps of a function in the order of its text, and its executions."""

    def __init__(self, function: Any) -> None:
        self.steps: list[_Step] = []
        self.numbers: Iterator[int] = iter(())
        self.moved: dict[int, int] = {}
        sections: dict[str, Any] = {}
        walk(function.body, lambda n: sections.update({n.name_hint: n}) if isinstance(n, tirx.SBlock) else None)
        self.sections = {core: self._parse(sections[core], core, {}) for core in (CUBE, VECTOR) if core in sections}

    def _parse(self, node: Any, core: str, loops: dict[Any, Any]) -> list[Any]:
        """Numbers of steps, ("for", key, variable, body) and ("if", key, then, else)."""
        if _is_step(node):
            call = node.value
            self.steps.append(_Step(op_name(call) == ARRIVE, core, call.args[1].value, call.args[2]))
            return [len(self.steps) - 1]
        if not _has_steps(node):
            return []
        if isinstance(node, tirx.SeqStmt):
            return [part for statement in node.seq for part in self._parse(statement, core, loops)]
        if isinstance(node, tirx.For):
            inner = {**loops, node.loop_var: tirx.Var(f"loop{len(loops)}", node.loop_var.dtype)}
            return [("for", _key(node.extent, loops), node.loop_var, self._parse(node.body, core, inner))]
        if isinstance(node, tirx.IfThenElse):
            otherwise = [] if node.else_case is None else self._parse(node.else_case, core, loops)
            return [("if", _key(node.condition, loops), self._parse(node.then_case, core, loops), otherwise)]
        if isinstance(node, (tirx.AttrStmt, tirx.SBlock)):
            return self._parse(node.body, core, loops)
        if isinstance(node, tirx.SBlockRealize):
            return self._parse(node.block, core, loops)
        raise LoweringError(f"cross-core flags under a {type(node).__name__}")

    def execute(self, core: str, seed: int) -> list[tuple[int, int]]:
        """Steps and the flags they name, in order. Turns and branches are drawn from the seed, on both cores alike."""
        events: list[tuple[int, int]] = []
        turns: dict[Any, int] = {}

        def draw(key: str, options: int) -> int:
            return random.Random(f"{seed} {key} {list(turns.values())}").randrange(options)

        def run(parts: list[Any]) -> None:
            for part in parts:
                if isinstance(part, int):
                    events.append((part, _value(self.steps[part].flag, turns)))
                elif part[0] == "if":
                    run(part[2] if draw(part[1], 2) else part[3])
                else:
                    for turn in range(draw(part[1], 4)):
                        turns[part[2]] = turn
                        run(part[3])
                    turns.pop(part[2], None)

        run(self.sections.get(core, []))
        return events

    def rewrite(self, body: Any, moved: dict[int, int]) -> Any:
        """The function's body with the flag of each step moved by so much."""
        self.moved, self.numbers = moved, itertools.count()
        return self.visit(body)

    def visit(self, node: Any) -> Any:
        if not isinstance(node, tirx.Stmt) or not _has_steps(node):
            return node
        return super().visit(node)

    def visit_evaluate_(self, node: Any) -> Any:
        call = node.value
        flag = tvm.arith.Analyzer().simplify(call.args[2] + self.moved[next(self.numbers)])
        return tirx.Evaluate(tirx.Call(call.dtype, call.op, [*call.args[:2], flag]))


def _value(expr: Any, turns: dict[Any, int]) -> int:
    if isinstance(expr, tirx.IntImm):
        return int(expr)
    if isinstance(expr, tirx.Var) and expr in turns:
        return turns[expr]
    name = op_name(expr) or type(expr).__name__
    operands = expr.args if isinstance(expr, tirx.Call) else (getattr(expr, "a", None), getattr(expr, "b", None))
    if name not in _INTEGER:
        raise LoweringError(f"a cross-core flag of which only {expr} is known")
    return _INTEGER[name](*(_value(operand, turns) for operand in operands))


def _key(expr: Any, loops: dict[Any, Any]) -> str:
    return str(tirx.stmt_functor.substitute(expr, loops)) if isinstance(expr, tirx.PrimExpr) else str(expr)


class _Channel:
    """Steps that only make sense on one flag (or on neighbouring ones): arrivals and the waits they are meant for."""

    def __init__(self, steps: list[_Step], numbers: set[int], flags: set[int]) -> None:
        self.numbers, self.first, self.width = numbers, min(flags), max(flags) - min(flags) + 1
        self.waiting = {steps[n].pipe for n in numbers if not steps[n].arrives}
        sources = {steps[n].pipe for n in numbers if steps[n].arrives}
        self.kind = (steps[min(numbers)].direction, *sorted(sources), "->", *sorted(self.waiting))
        self.simple = self.width == 1 and len(sources) == 1


def _traces(program: _Program) -> list[dict[tuple[str, int], tuple[list[tuple[int, int]], list[tuple[int, int]]]]]:
    """Per execution, waiting core and vector core: arrivals and waits, each a step and a flag below 16."""
    traces = []
    for seed in range(TRACES):
        trace = {}
        events = {core: program.execute(core, seed) for core in (CUBE, VECTOR)}
        for direction, lane in itertools.product((CUBE, VECTOR), (0, 1)):
            sides: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
            for core in (CUBE, VECTOR):
                for number, flag in events[core]:
                    step = program.steps[number]
                    if step.direction == direction and (core == VECTOR or flag // FLAGS == lane):
                        sides[0 if step.arrives else 1].append((number, flag % FLAGS))
            trace[direction, lane] = sides
        traces.append(trace)
    return traces


def _channels(program: _Program, traces: list[Any]) -> list[_Channel]:
    """The n-th arrival at a flag is for the n-th wait: steps so related form a channel."""
    group = list(range(len(program.steps)))

    def find(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    flags: dict[int, set[int]] = defaultdict(set)
    for trace in traces:
        for arrivals, waits in trace.values():
            sides: list[dict[int, list[int]]] = [defaultdict(list), defaultdict(list)]
            for side, events in zip(sides, (arrivals, waits), strict=True):
                for number, flag in events:
                    side[flag].append(number)
                    flags[number].add(flag)
            if any(len(sides[0][flag]) != len(sides[1][flag]) for flag in {*sides[0], *sides[1]}):
                raise LoweringError("a cross-core flag is not set as often as it is waited for")
            for flag, numbers in sides[0].items():
                for arrival, wait in zip(numbers, sides[1][flag], strict=True):
                    group[find(arrival)] = find(wait)
    members: dict[int, set[int]] = defaultdict(set)
    for number in flags:
        members[find(number)].add(number)
    return [
        _Channel(program.steps, numbers, set().union(*(flags[n] for n in numbers)))
        for numbers in sorted(members.values(), key=min)
    ]


def _in_one_order(channels: list[_Channel], traces: list[Any]) -> bool:
    """Whether the channels' waits come in the order of their arrivals in every execution."""
    channel = {number: position for position, one in enumerate(channels) for number in one.numbers}
    for trace in traces:
        for sides in trace.values():
            first, second = ([channel[number] for number, _ in side if number in channel] for side in sides)
            if first != second:
                return False
    return True


def _share(channels: list[_Channel], traces: list[Any]) -> list[list[_Channel]]:
    """Channels by flag: each its own, or as few flags as first fit gives where those are too many."""
    if sum(channel.width for channel in channels) <= FLAGS:
        return [[channel] for channel in channels]
    flags: list[list[_Channel]] = []
    for channel in channels:
        for flag in flags if channel.simple else ():
            fits = flag[0].simple and flag[0].kind == channel.kind and len(flag) < COUNT
            if fits and _in_one_order([*flag, channel], traces):
                flag.append(channel)
                break
        else:
            flags.append([channel])
    return flags


def two_pipes_wait(function: Any) -> bool:
    """Whether some flag of a core has waits on two pipes."""
    return _two_pipes_wait(_Program(function).steps)


def _two_pipes_wait(steps: list[_Step]) -> bool:
    waiting: dict[tuple[str, int], set[str]] = defaultdict(set)
    for step in steps:
        if not step.arrives and isinstance(step.flag, tirx.IntImm):
            waiting[step.core, int(step.flag)].add(step.pipe)
    return any(len(pipes) > 1 for pipes in waiting.values())


def allocate(function: Any) -> Any:
    """The lowered device function with flags that have one waiting pipe each; unchanged where all do.

    Raises:
        LoweringError: 16 flags are not enough, or what an arrival is for cannot be told.
    """
    program = _Program(function)
    if not _two_pipes_wait(program.steps):
        return function
    traces = _traces(program)
    channels = _channels(program, traces)
    if any(len(channel.waiting) != 1 for channel in channels):
        raise LoweringError("two pipes wait for one cross-core flag, and what it is set for cannot be told apart")
    flags = _share(channels, traces)
    if sum(flag[0].width for flag in flags) > FLAGS:
        raise LoweringError(
            f"the kernel needs {sum(flag[0].width for flag in flags)} cross-core flags, {FLAGS} exist: "
            "fewer products of tiles in a loop's body need fewer"
        )
    moved: dict[int, int] = {}
    base = 0
    for flag in flags:
        moved.update({number: base - channel.first for channel in flag for number in channel.numbers})
        base += flag[0].width
    return function.with_body(program.rewrite(function.body, moved))


def install() -> None:
    """Make TileLang's Ascend pipeline allocate flags by :func:`allocate`, after all that moves or copies statements."""
    before = stages.RewriteFlagToBuf

    def after_scheduling() -> Any:
        step = before()
        return lambda module: on_functions(allocate, step(module))

    stages.RewriteFlagToBuf = after_scheduling
