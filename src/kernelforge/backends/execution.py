"""How virtual devices execute: in which order asynchronous work happens, and whether the checkers watch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

ENVIRONMENT = "KERNELFORGE_VIRTUAL"
"""``ORDER[:SEED]``, with ``+unchecked`` behind it to run without the checkers; what :func:`current` is by default."""
ORDERS = ("late", "early", "random")
_UNCHECKED = "unchecked"


@dataclass(frozen=True)
class Execution:
    """A schedule of a virtual device. No schedule changes a bit of a correct kernel.

    Attributes:
        order: ``"late"`` (asynchronous work happens when a wait forces it), ``"early"`` (as soon as it may) or
            ``"random"``.
        seed: decides every random choice and the garbage in memory, so that a run can be repeated.
        preempt: chance that a warp stops after an instruction, on devices that have warps.
        check: run the checkers: happens-before, proxies and fences, unwritten memory, bounds of every access.
    """

    order: str = ORDERS[0]
    seed: int = 0
    preempt: float = 0.0
    check: bool = True

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order of a virtual device: given {self.order!r}, wanted one of {', '.join(ORDERS)}")


_chosen: ContextVar[Execution | None] = ContextVar("kernelforge_execution", default=None)


def current() -> Execution:
    """What :func:`executing` chose, else what :data:`ENVIRONMENT` says, else ``Execution()``."""
    return _chosen.get() or parse(os.environ.get(ENVIRONMENT, ORDERS[0]))


@contextmanager
def executing(execution: Execution) -> Iterator[None]:
    """Choose how virtual devices execute, for the calls of this thread inside the block."""
    token = _chosen.set(execution)
    try:
        yield
    finally:
        _chosen.reset(token)


def parse(text: str) -> Execution:
    """The value of :data:`ENVIRONMENT`.

    Raises:
        ValueError: the text names no order, its seed is no natural number, or something else follows.
    """
    order, plus, check = text.partition("+")
    name, colon, seed = order.partition(":")
    if name not in ORDERS or (colon and not seed.isdecimal()) or (plus and check != _UNCHECKED):
        raise ValueError(
            f"{ENVIRONMENT} is {text!r}; wanted {', '.join(ORDERS[:-1])} or {ORDERS[-1]}, "
            f"then :SEED if a seed is meant, then +{_UNCHECKED} to leave the checkers out"
        )
    return Execution(name, int(seed or 0), check=not plus)
