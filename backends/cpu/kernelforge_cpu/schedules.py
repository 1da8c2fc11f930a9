"""The CPU's rows of the tuning tables. A schedule never changes a bit of a result."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kernelforge.runtime import tuning

CORES = "cores"
"""A condition that the host answers: many cores want more blocks than a few, which want larger ones."""


def cores() -> int:
    """Cores that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


@functools.cache
def rows(op: str) -> Sequence[Mapping[str, Any]]:
    """The rows of ``op`` that hold for this host."""
    return for_cores(tuning.packaged("kernelforge_cpu", op), cores())


def for_cores(table: Sequence[Mapping[str, Any]], count: int) -> Sequence[Mapping[str, Any]]:
    """The rows that hold on a host of ``count`` cores, with that condition taken out."""
    kept = []
    for row in table:
        conditions = dict(row.get("when", {}))
        if tuning.matches(conditions.pop(CORES, count), count):
            kept.append({**row, "when": conditions})
    return kept
