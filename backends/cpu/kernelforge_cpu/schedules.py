"""The CPU's rows of the tuning tables. A schedule never changes a bit of a result."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from kernelforge.runtime import tuning

from . import compiler

Facts = Mapping[str, Any]
"""What a row may ask of the host: ``cores``, as many cores want more blocks than a few, which want larger ones, and
``avx512``, whether it has it."""


def host() -> Facts:
    """This host's: cores are those that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    return {"cores": cores, "avx512": compiler.has_feature("avx512f")}


@functools.cache
def rows(op: str) -> Sequence[Mapping[str, Any]]:
    """The rows of ``op`` that hold for this host."""
    return for_host(tuning.packaged("kernelforge_cpu", op), host())


def for_host(table: Sequence[Mapping[str, Any]], facts: Facts) -> Sequence[Mapping[str, Any]]:
    """The rows that hold on a host, with what they ask of it taken out."""
    kept = []
    for row in table:
        conditions = dict(row.get("when", {}))
        if all(tuning.matches(conditions.pop(name, fact), fact) for name, fact in facts.items()):
            kept.append({**row, "when": conditions})
    return kept
