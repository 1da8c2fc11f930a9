"""One call against torch's eager mode and torch.compile, with the machine's bandwidth beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .measure import interleaved, peak_memory
from .report import Row, replays

Call = Callable[[], Any]


def against_torch(
    name: str,
    call: Call,
    eager: Call,
    compiled: Call | None,
    nbytes: float,
    copy: float,
    rounds: int = 5,
    home: str = "cpu",
) -> Row:
    """A row of times and ratios.

    Args:
        name: of the row.
        call, eager: what is measured, and what torch does instead.
        compiled: ``eager`` under ``torch.compile``, or None.
        nbytes: bytes that must be read and written.
        copy: bytes per second of a copy on this machine, read and written.
        rounds: measurements of each.
        home: torch's type of the device.
    """
    calls = {"kernelforge": call, "torch eager": eager} | ({"torch.compile": compiled} if compiled is not None else {})
    taken = interleaved(calls, rounds=rounds, home=home)
    ours = taken["kernelforge"].median
    values: dict[str, Any] = {"ms": ours * 1e3}
    for other in list(calls)[1:]:
        values |= {f"{other} ms": taken[other].median * 1e3, f"x {other}": taken[other].median / ours}
    memory = peak_memory(call, home=home)
    values |= replays(taken)
    values |= {
        "MB moved": nbytes / 1e6,
        "% of copy bandwidth": 100 * nbytes / ours / copy,
        "extra MiB": None if memory is None else memory / 2**20,
    }
    return Row(name, values)
