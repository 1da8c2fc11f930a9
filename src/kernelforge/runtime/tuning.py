"""The tuning table: which schedule a kernel gets. A schedule never changes a bit of a result."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from .. import backends

TABLE = "tuning.json"


def schedule(op: str, device: str, **problem: Any) -> Mapping[str, Any]:
    """The schedule for a problem: the backend's rows first, then the op's own; the first match wins.

    A row is ``{"when": {name: value | [values] | {"min": a, "max": b}}, "set": {parameter: value}}``; names that a row
    does not mention are free. Every row may ask for the ``arch`` that ``device`` runs; where there is no such device,
    it is the backend's first.

    Raises:
        LookupError: no row matches (an op's own table ends with a row without conditions).
    """
    backend = backends.backend(device.partition(":")[0])
    try:
        arch = backend.default_arch(device)
    except backends.DeviceUnavailable:
        arch = backend.archs()[0]
    return _first_match(op, device, arch=arch, **problem)


@functools.lru_cache(maxsize=4096)
def _first_match(op: str, device: str, **problem: Any) -> Mapping[str, Any]:
    backend = backends.backend(device.partition(":")[0])
    for row in (*backend.tuning(op), *_own_rows(op)):
        if all(matches(condition, problem[name]) for name, condition in row.get("when", {}).items()):
            return dict(row["set"])
    raise LookupError(f"tuning: no schedule of {op} matches {problem} on {device}")


@functools.cache
def _own_rows(op: str) -> Sequence[Mapping[str, Any]]:
    return load(files(f"kernelforge.ops.{op}").joinpath(TABLE).read_text())


@functools.cache
def packaged(package: str, op: str) -> Sequence[Mapping[str, Any]]:
    """The rows of ``op`` in ``tuning/<op>.json`` of a backend's package; none where it has no such file."""
    table = files(package).joinpath("tuning", f"{op}.json")
    return load(table.read_text()) if table.is_file() else ()


def load(text: str) -> Sequence[Mapping[str, Any]]:
    """Parse a table; every row must set something."""
    rows = json.loads(text)
    for row in rows:
        if not set(row) <= {"when", "set"} or not row.get("set"):
            raise ValueError(f"tuning: a row is {{'when': ..., 'set': ...}}, given {row}")
    return rows


def matches(condition: Any, value: Any) -> bool:
    """Whether ``value`` is the condition's value, one of its values, or between its ``min`` and ``max``."""
    if isinstance(condition, Mapping):
        return condition.get("min", value) <= value <= condition.get("max", value)
    return value in condition if isinstance(condition, list) else value == condition
