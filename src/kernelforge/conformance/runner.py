"""Runs cases on devices and keeps what came of them."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from .. import contract
from ..backends.execution import ORDERS, Execution, executing
from ..ops.spec import Arrays, Case, OpSpec
from ..runtime.workers import compiling
from .compare import compare, digest


@dataclass(frozen=True)
class CaseResult:
    """One case on one device.

    Attributes:
        op, case, device: which.
        digest: SHA-256 of the device's output bits, empty when it raised.
        expected: SHA-256 of the reference's.
        problems: differences, or the error; empty when the bits are equal.
        seconds: running, and compiling where this was the kernel's first use.
    """

    op: str
    case: str
    device: str
    digest: str
    expected: str
    problems: tuple[str, ...]
    seconds: float

    @property
    def equal(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    cases: tuple[tuple[str, Case], ...]
    devices: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.cases) * len(self.devices)


@dataclass
class Run:
    """What came of it; ``size`` and ``seed`` name the cases."""

    seed: int
    size: str
    devices: tuple[str, ...]
    results: list[CaseResult] = field(default_factory=list)
    seconds: float = 0.0
    contract: int = contract.VERSION

    @property
    def failures(self) -> list[CaseResult]:
        return [result for result in self.results if not result.equal]

    def of(self, device: str, op: str | None = None) -> list[CaseResult]:
        """Results of one device, of one op if named."""
        return [r for r in self.results if r.device == device and op in (None, r.op)]

    @property
    def ops(self) -> list[str]:
        return list(dict.fromkeys(result.op for result in self.results))

    def expected_digest(self, op: str) -> str:
        """One digest for all of the reference's bits of an op."""
        first = self.devices[0] if self.devices else ""
        return joint_digest((r.case, r.expected) for r in self.of(first, op))

    def device_digest(self, device: str, op: str) -> str:
        """One digest for all of a device's bits of an op; :meth:`expected_digest` if and only if all are equal."""
        return joint_digest((r.case, r.digest) for r in self.of(device, op))


def joint_digest(digests: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over (case, digest) pairs in order of case."""
    state = hashlib.sha256()
    for case, value in sorted(digests):
        state.update(f"{case}\0{value}\n".encode())
    return state.hexdigest()


def plan(ops: Sequence[OpSpec], devices: Sequence[str], seed: int, size: str) -> Plan:
    """The cases of ``ops`` for ``devices``."""
    cases = tuple((op.name, case) for op in ops for case in op.conformance_cases(seed, size))
    names = [(op, case.name) for op, case in cases]
    if len(set(names)) != len(names):
        raise ValueError(f"conformance cases share a name: {sorted({n for n in names if names.count(n) > 1})}")
    return Plan(cases, tuple(devices))


def run(planned: Plan, seed: int, size: str, observe: Callable[[CaseResult], None] = lambda result: None) -> Run:
    """Run every case on every device, several ops at a time; an error in a case is its result and stops nothing.

    Virtual devices run with their checkers, each case under another schedule: see :func:`execution`.

    Args:
        planned: what to run; ``seed`` and ``size`` are what it was planned with.
        observe: called with each result, from several threads.
    """
    outcome = Run(seed, size, planned.devices)
    started = time.perf_counter()
    positions: dict[str, list[int]] = {}
    for i, (op, _) in enumerate(planned.cases):
        positions.setdefault(op, []).append(i)
    references: dict[str, dict[int, tuple[Arrays, str]]] = {}
    turns = {op: threading.Lock() for op in positions}

    def expected(op: str) -> dict[int, tuple[Arrays, str]]:
        with turns[op]:  # the first device's; kernels of other ops compile meanwhile
            if op not in references:
                arrays = {i: planned.cases[i][1].expected() for i in positions[op]}
                references[op] = {i: (found, digest(found)) for i, found in arrays.items()}
        return references[op]

    def run_op(device: str, op: str) -> dict[tuple[int, str], CaseResult]:
        found = {}
        for i, reference in expected(op).items():
            with executing(execution(seed, i)):
                found[i, device] = _run_case(op, planned.cases[i][1], device, *reference)
            observe(found[i, device])
        return found

    threads = os.cpu_count() or 1
    # Devices in turns, so that at the end not only tasks of the one that compiles longest are left.
    tasks = [(device, op) for op in positions for device in planned.devices]
    with compiling(threads), ThreadPoolExecutor(max_workers=threads) as pool:
        found = {at: result for done in pool.map(run_op, *zip(*tasks, strict=True)) for at, result in done.items()}
    outcome.results = [found[i, device] for i in range(len(planned.cases)) for device in planned.devices]
    outcome.seconds = time.perf_counter() - started
    return outcome


def execution(seed: int, index: int) -> Execution:
    """How virtual devices run case number ``index``: every order in turn, half of the cases preempted."""
    return Execution(ORDERS[index % len(ORDERS)], seed * 1_000_003 + index, preempt=index % 2 * 0.02)


def _run_case(op: str, case: Case, device: str, expected: Arrays, wanted: str) -> CaseResult:
    begun = time.perf_counter()
    try:
        given = case.run(device)
        problems = tuple(str(difference) for difference in compare(expected, given))
        found = digest(given)
    except Exception as error:  # reported as this case's failure, whatever the backend raised
        problems, found = (_describe(error),), ""
    return CaseResult(op, case.name, device, found, wanted, problems, time.perf_counter() - begun)


def _describe(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename.rpartition('/')[2]}:{last.lineno})"
