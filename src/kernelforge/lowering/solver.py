"""When TileLang's simplifier may ask z3: thousands of small questions a kernel, most of which it cannot prove.

A question takes z3 up to a millisecond, and its answer decides code in few passes: where bounds are checked, where
threads wait. Elsewhere a pass does with what TVM's own rules prove.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator
from typing import Any

import z3

from .tir import pass_context, pass_instrument

_PARAMETER, _NO_ARITHMETIC = "smt.arith.solver", "0"
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

    z3's parameters are the process's. While a pass runs that does not prove, another thread's solver that is made at
    that moment may answer "unknown". Between passes and after an error they are as they were.

    Args:
        config: options of TVM's ``PassContext``.
        proving: names of the passes for which z3 decides arithmetic; None for all.
    """
    with _lowering:
        solvers = _Solvers(proving)
        instruments = [] if proving is None else [pass_instrument(_Sparing)(solvers)]
        try:
            with pass_context(config, instruments):
                yield
        finally:
            solvers.restore()


class _Solvers:
    """The choices of the passes that run now, the outermost's first."""

    def __init__(self, proving: Collection[str] | None) -> None:
        self._proving = proving or ()
        self._before: list[str] = []

    def enter(self, name: str) -> None:
        before = z3.get_param(_PARAMETER)
        self._before.append(before)
        z3.set_param(_PARAMETER, self._before[0] if name in self._proving else _NO_ARITHMETIC)

    def leave(self) -> None:
        z3.set_param(_PARAMETER, self._before.pop())

    def restore(self) -> None:
        """After an error within a pass: to what was before the outermost."""
        while self._before:
            self.leave()


class _Sparing:
    """Tells z3 with which solver each pass runs."""

    def __init__(self, solvers: _Solvers) -> None:
        self._solvers = solvers

    def run_before_pass(self, module: Any, info: Any) -> None:
        self._solvers.enter(info.name)

    def run_after_pass(self, module: Any, info: Any) -> None:
        self._solvers.leave()
