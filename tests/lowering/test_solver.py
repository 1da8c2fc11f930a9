"""z3 decides arithmetic in the passes that a backend names; before and after each its parameter is the user's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import z3

sys.path.insert(0, str(Path(__file__).parent))

import accepted_kernels

from kernelforge import backends
from kernelforge.lowering import lower
from kernelforge.lowering.solver import lowering_context
from kernelforge.lowering.tir import tvm

PARAMETER = "smt.arith.solver"
OUTER, INNER = "tests.outer", "tests.inner"


@pytest.fixture(params=["6", "2"], ids=["default", "own"], autouse=True)
def own(request: Any) -> Iterator[str]:
    """z3's default, and what the user chose before."""
    before = z3.get_param(PARAMETER)
    z3.set_param(PARAMETER, request.param)
    yield request.param
    z3.set_param(PARAMETER, before)


def _recording(name: str, seen: list[tuple[str, str]], within: Any = None) -> Any:
    def run(module: Any, context: Any) -> Any:
        seen.append((name, z3.get_param(PARAMETER)))
        module = module if within is None else within(module)
        seen.append((name, z3.get_param(PARAMETER)))
        return module

    return tvm.transform.module_pass(run, opt_level=0, name=name)


def _module() -> Any:
    return tvm.IRModule({})


@pytest.mark.parametrize("proving", [{OUTER}, {INNER}, {OUTER, INNER}, set()])
def test_each_pass_has_its_solver(own: str, proving: set[str]) -> None:
    seen: list[tuple[str, str]] = []
    with lowering_context({}, proving):
        _recording(OUTER, seen, _recording(INNER, seen))(_module())
        assert z3.get_param(PARAMETER) == own, "between passes it is the user's"
    of = {name: own if name in proving else "0" for name in (OUTER, INNER)}
    assert seen == [(name, of[name]) for name in (OUTER, INNER, INNER, OUTER)]
    assert z3.get_param(PARAMETER) == own


def test_without_names_every_pass_proves(own: str) -> None:
    seen: list[tuple[str, str]] = []
    with lowering_context({}, None):
        _recording(OUTER, seen)(_module())
    assert seen == [(OUTER, own)] * 2


def test_an_error_within_passes_puts_the_choice_back(own: str) -> None:
    def fails(module: Any) -> Any:
        assert z3.get_param(PARAMETER) == "0"
        raise RuntimeError("no such tile")

    with pytest.raises(RuntimeError, match="no such tile"), lowering_context({}, set()):
        _recording(OUTER, [], _recording(INNER, [], fails))(_module())
    assert z3.get_param(PARAMETER) == own


def test_kernels_lowered_side_by_side_and_one_that_is_refused(own: str) -> None:
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
    assert z3.get_param(PARAMETER) == own


def test_guards_and_barriers_are_those_of_every_pass_proving(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (backends.backend("cpu"), backends.backend("cuda")):
        arch = backend.archs()[0]
        for kernel in (accepted_kernels.lane_sums(), accepted_kernels.rounding_by_bits()):
            spared = lower(kernel, backend, arch).source
            with monkeypatch.context() as patch:
                patch.setattr(backend, "proving_passes", None)
                assert lower(kernel, backend, arch).source == spared
