"""z3 decides arithmetic in the passes that a backend names, and outside of passes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import accepted_kernels

from kernelforge import backends
from kernelforge.lowering import lower
from kernelforge.lowering.prover import door, slots
from kernelforge.lowering.solver import lowering_context
from kernelforge.lowering.tir import COMPILER_LIBRARIES, tirx, tvm

OUTER, INNER = "tests.outer", "tests.inner"


def proves() -> bool:
    """Whether TVM proves what only z3 can."""
    x = tirx.Var("x", "int32")
    return bool(tvm.arith.Analyzer().can_prove(x * x >= 0))


@pytest.fixture(autouse=True)
def open_before_and_after() -> Iterator[None]:
    assert proves()
    yield
    assert proves()


def _recording(name: str, seen: list[tuple[str, bool]], within: Any = None) -> Any:
    def run(module: Any, context: Any) -> Any:
        seen.append((name, proves()))
        module = module if within is None else within(module)
        seen.append((name, proves()))
        return module

    return tvm.transform.module_pass(run, opt_level=0, name=name)


def _module() -> Any:
    return tvm.IRModule({})


@pytest.mark.parametrize("proving", [{OUTER}, {INNER}, {OUTER, INNER}, set()])
def test_each_pass_asks_z3_or_does_not(proving: set[str]) -> None:
    seen: list[tuple[str, bool]] = []
    with lowering_context({}, proving):
        _recording(OUTER, seen, _recording(INNER, seen))(_module())
        assert proves(), "between passes z3 is asked"
    assert seen == [(name, name in proving) for name in (OUTER, INNER, INNER, OUTER)]


def test_without_names_every_pass_proves() -> None:
    seen: list[tuple[str, bool]] = []
    with lowering_context({}, None):
        _recording(OUTER, seen)(_module())
    assert seen == [(OUTER, True)] * 2


def test_an_error_within_passes_opens_the_door() -> None:
    def fails(module: Any) -> Any:
        assert not proves()
        raise RuntimeError("no such tile")

    with pytest.raises(RuntimeError, match="no such tile"), lowering_context({}, set()):
        _recording(OUTER, [], _recording(INNER, [], fails))(_module())


def test_the_door_stands_where_both_libraries_call_the_prover() -> None:
    assert len(door().entries) == len(COMPILER_LIBRARIES)
    for path in COMPILER_LIBRARIES:
        image = path.read_bytes()
        assert list(slots(image, b"no_such_function")) == []
        assert list(slots(b"MZ" + image, b"free")) == [], "not ELF's"


def test_kernels_lowered_side_by_side_and_one_that_is_refused() -> None:
    cpu, cuda = backends.backend("cpu"), backends.backend("cuda")
    kernel = accepted_kernels.lane_sums()

    def lowers(number: int) -> str:
        if number % 3 == 2:
            with pytest.raises(ValueError, match="no such function"), lowering_context({}, set()):
                _recording(OUTER, [], lambda module: module["no such function"])(_module())
            return ""
        backend, arch = (cuda, "sm_80") if number % 3 else (cpu, cpu.archs()[0])
        return lower(kernel, backend, arch).source

    alone = [lowers(0), lowers(1), ""]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lowers, range(9))) == alone * 3


def test_guards_and_barriers_are_those_of_every_pass_proving(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (backends.backend(name) for name in ("cpu", "cuda", "ascend")):
        arch = backend.archs()[0]
        for kernel in (accepted_kernels.lane_sums(), accepted_kernels.rounding_by_bits()):
            spared = lower(kernel, backend, arch).source
            with monkeypatch.context() as patch:
                patch.setattr(backend, "proving_passes", None)
                assert lower(kernel, backend, arch).source == spared
