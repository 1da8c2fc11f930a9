"""When TileLang's simplifier may ask z3: thousands of small questions a kernel, most of which it cannot prove.

A question takes z3 a millisecond, and its answer decides code in few passes: where bounds are checked, where threads
wait. Elsewhere a pass does with what TVM's own rules prove.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator
from typing import Any

import z3

from .prover import door
from .tir import pass_context, pass_instrument

_PARAMETER = "smt.arith.solver"
_lowering = threading.RLock()


@contextlib.contextmanager
def arithmetic_solver(choice: str) -> Iterator[None]:
    """z3 with one of its solvers for arithmetic (``smt.arith.solver``); the caller's choice is back afterwards."""
    with _lowering:
        before = z3.get_param(_PARAMETER)
        z3.set_param(_PARAMETER, choice)
        try:
            yield
        finally:
            z3.set_param(_PARAMETER, before)


@contextlib.contextmanager
def lowering_context(config: Any, proving: Collection[str] | None) -> Iterator[None]:
    """The context under which TileLang lowers; one thread at a time, as its passes hold Python's lock anyway.

    The door is the process's: while a pass runs that does not prove, another thread's analyzer does without z3 too.
    Between passes and after an error it is open.

    Args:
        config: options of TVM's ``PassContext``.
        proving: names of the passes that may ask z3; None for all.
    """
    with _lowering:
        doors = _Doors(proving)
        instruments = [] if proving is None else [pass_instrument(_Sparing)(doors)]
        try:
            with pass_context(config, instruments):
                yield
        finally:
            doors.restore()


class _Doors:
    """Whether the passes that run now prove, the outermost's first."""

    def __init__(self, proving: Collection[str] | None) -> None:
        self._proving = proving or ()
        self._before: list[bool] = []

    def enter(self, name: str) -> None:
        self._before.append(door().is_open)
        self._turn(name in self._proving)

    def leave(self) -> None:
        self._turn(self._before.pop())

    def restore(self) -> None:
        """After an error within a pass: to what was before the outermost."""
        while self._before:
            self.leave()

    def _turn(self, proves: bool) -> None:
        if proves:
            door().open()
        else:
            door().shut()


class _Sparing:
    """Opens and shuts the door before and after each pass."""

    def __init__(self, doors: _Doors) -> None:
        self._doors = doors

    def run_before_pass(self, module: Any, info: Any) -> None:
        self._doors.enter(info.name)

    def run_after_pass(self, module: Any, info: Any) -> None:
        self._doors.leave()
