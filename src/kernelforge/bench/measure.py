"""Time and memory of calls that compete in one run."""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from ..runtime import host_memory

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds per call.

    Attributes:
        median: of the rounds.
        best: the fastest round.
        spread: the interquartile range.
        replay: the median where the call is a CUDA graph, so that nothing is waited for that the host does; None on
            other devices, and of a call that cannot be captured.
    """

    median: float
    best: float
    spread: float
    replay: float | None = None


def interleaved(
    calls: Mapping[str, Call],
    rounds: int = 9,
    seconds: float = 0.05,
    observe: Callable[[], None] = lambda: None,
    home: str = "cpu",
) -> dict[str, Timing]:
    """Time calls in turn, round by round, so that a machine that changes its speed changes it for all of them.

    Args:
        calls: by name; each is warmed up first.
        rounds: measurements of each call.
        seconds: least duration of one measurement; a call is repeated until it is reached.
        observe: called after each round.
        home: torch's type of the device that calls run on; on ``"cuda"`` they are timed as CUDA graphs too.
    """
    timings = _rounds(calls, rounds, seconds, observe)
    if home != "cuda":
        return timings
    replays = _rounds(captured(calls), rounds, seconds, observe)
    return {
        name: replace(timing, replay=replays[name].median if name in replays else None)
        for name, timing in timings.items()
    }


def captured(calls: Mapping[str, Call]) -> dict[str, Call]:
    """Replays of calls as CUDA graphs; without those that cannot be captured, as they wait for the device."""
    replays: dict[str, Call] = {}
    for name, call in calls.items():
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError:
            torch.cuda.synchronize()
        else:
            replays[name] = graph.replay
    return replays


def _rounds(calls: Mapping[str, Call], rounds: int, seconds: float, observe: Callable[[], None]) -> dict[str, Timing]:
    threads = torch.get_num_threads()
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()}
    repeats = {}
    for name, timer in timers.items():
        timer.timeit(1)
        once = timer.timeit(2).median
        repeats[name] = max(1, min(100_000, round(seconds / max(once, 1e-9))))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, timer in timers.items():
            taken[name].append(timer.timeit(repeats[name]).median)
        observe()
    return {name: _timing(values) for name, values in taken.items()}


def _timing(values: list[float]) -> Timing:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Timing(statistics.median(values), min(values), quarters[2] - quarters[0])


_LIBC = ctypes.CDLL(None)
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_memory(call: Call, rounds: int = 3, home: str = "cpu") -> int | None:
    """Bytes by which memory rises at its highest during a call, its result included.

    On the CPU of the process's resident memory, on ``home`` ``"cuda"`` of what torch has handed out on the device. The
    least of a few rounds: what else happens in the process, a huge page or a file's pages read again, can only add.
    Memory that earlier calls left with the allocators is given back first; scratch that threads keep between calls is
    not counted. None where the kernel does not let a process reset its peak (Linux does), and on other devices.
    """
    if home not in ("cpu", "cuda"):
        return None
    call()
    if home == "cuda":
        return min(_device_rise(call) for _ in range(rounds))
    try:
        return min(_rise(call) for _ in range(rounds))
    except OSError:
        return None


def _rise(call: Call) -> int:
    gc.collect()
    host_memory.shared.release()
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
    _CLEAR.write_text("5")  # resets the peak to what is resident now
    before = _resident("VmHWM")
    result = call()
    after = _resident("VmHWM")
    del result
    return after - before


def _device_rise(call: Call) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    after = torch.cuda.max_memory_allocated()
    del result
    return after - before


def _resident(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")
