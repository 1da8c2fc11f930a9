"""Every pass of every backend has a golden test: a kernel's IR before it and after."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kernelforge import backends

TESTS = Path(__file__).parents[1]
PASSES = sorted(
    {
        (name, step.__name__)
        for name, backend in backends.backends().items()
        for arch in backend.archs()
        for step in backend.passes(arch)
    }
)


def _tests_in(folder: str) -> list[ast.FunctionDef]:
    trees = [ast.parse(file.read_text()) for file in sorted((TESTS / folder).glob("test_*.py"))]
    return [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_every_backend_has_passes() -> None:
    assert {backend for backend, _ in PASSES} == set(backends.backends())


@pytest.mark.parametrize(("backend", "step"), [pytest.param(*one, id="-".join(one)) for one in PASSES])
def test_the_pass_has_a_golden_test(backend: str, step: str) -> None:
    goldens = [
        test
        for folder in (backend, "lowering")
        for test in _tests_in(folder)
        if test.name.startswith(f"test_{step}_golden")
    ]
    assert goldens, f"no test_{step}_golden in tests/{backend} or tests/lowering"
    for test in goldens:
        functions = [node.func for node in ast.walk(test) if isinstance(node, ast.Call)]
        called = {getattr(function, "id", getattr(function, "attr", "")) for function in functions}
        assert step in called, f"{test.name} does not run the pass"
        assert any(isinstance(node, ast.Assert) for node in ast.walk(test)), f"{test.name} asserts nothing"
