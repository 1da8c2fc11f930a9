"""The portable subset's verifier: everything refused is refused with its line, and everything allowed passes."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import accepted_kernels  # noqa: E402
import refused_fp32  # noqa: E402
import refused_programs  # noqa: E402

from kernelforge.lowering import NotPortable, lower_composites, verify  # noqa: E402
from kernelforge.lowering.tir import tirx, tvm  # noqa: E402
from kernelforge.lowering.verify_fp32 import Fp32Rules  # noqa: E402
from kernelforge.ops.mxfp4_gemm.kernel import mxfp4_gemm  # noqa: E402

DOCUMENT = HERE.parents[1] / "docs" / "portable-subset.md"


def _builders(module: Any) -> dict[str, Callable[[], Any]]:
    found = inspect.getmembers(module, inspect.isfunction)
    return {name: builder for name, builder in found if builder.__module__ == module.__name__ and name[0] != "_"}


REFUSED = _builders(refused_fp32) | _builders(refused_programs)
ACCEPTED = _builders(accepted_kernels)


def _expected(builder: Callable[[], Any]) -> set[tuple[int, str]]:
    """(line, start of the message) for each ``refused:`` comment in a builder's source."""
    lines, first = inspect.getsourcelines(builder)
    expected = set()
    for number, text in enumerate(lines, first):
        _, marker, messages = text.partition("# refused: ")
        if marker:
            expected |= {(number, message.strip()) for message in messages.split("; ")}
    return expected


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    expected = _expected(REFUSED[name])
    assert expected
    with pytest.raises(NotPortable) as caught:
        verify(REFUSED[name]())
    remaining = list(caught.value.violations)
    for line, message in sorted(expected):
        start = f"{inspect.getsourcefile(REFUSED[name])}:{line}: {message}"
        matching = [violation for violation in remaining if violation.startswith(start)]
        assert matching, f"no {start!r} in {caught.value}"
        remaining.remove(matching[0])
    assert not remaining, "lines refused without reason"


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts(name: str) -> None:
    verify(ACCEPTED[name]())


@pytest.mark.parametrize("a_format", ["e2m1", "e4m3_e8m0", "e4m3_f32", "bf16"])
@pytest.mark.parametrize("experts", [0, 2])
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float16", "float32"])
def test_mxfp4_gemm_is_portable(a_format: str, experts: int, out_dtype: str) -> None:
    kernel = mxfp4_gemm(128, 256, experts, a_format, out_dtype, 32, 32, 128, 128, 2)
    verify(kernel)
    verify(lower_composites(kernel))


def test_every_refusal_is_documented_under_its_tests_name() -> None:
    documented = set(re.findall(r"`test_refuses\[(\w+)\]`", DOCUMENT.read_text()))
    assert documented == set(REFUSED)


def test_every_allowance_is_documented_under_its_tests_name() -> None:
    documented = set(re.findall(r"`test_accepts\[(\w+)\]`", DOCUMENT.read_text()))
    assert documented == set(ACCEPTED)


def test_all_violations_are_reported_at_once() -> None:
    with pytest.raises(NotPortable) as caught:
        verify(refused_fp32.trigonometry())
    assert len(caught.value.violations) == 3
    assert all(violation in str(caught.value) for violation in caught.value.violations)


# The fp32 rules against the simplifier itself: what they let through keeps its bits.

_SPECIAL = np.array([0.0, -0.0, 1.0, -1.5, 3.0, 1e-3, 12582912.0, 3e38, np.inf, -np.inf, np.nan], np.float32)
_ARITHMETIC = {tirx.Add: np.add, tirx.Sub: np.subtract, tirx.Mul: np.multiply}
_COMPARE = {
    tirx.LT: np.less,
    tirx.LE: np.less_equal,
    tirx.GT: np.greater,
    tirx.GE: np.greater_equal,
    tirx.EQ: np.equal,
    tirx.NE: np.not_equal,
}
_LOGIC = {tirx.And: np.logical_and, tirx.Or: np.logical_or}
_X, _Y = tirx.Var("x", "float32"), tirx.Var("y", "float32")
_C, _ZERO, _ONE = (tirx.FloatImm("float32", value) for value in (3.0, 0.0, 1.0))


def _evaluate(node: Any) -> Any:
    """Value of an expression over every pair of special values."""
    x, y = np.meshgrid(_SPECIAL, _SPECIAL)
    if isinstance(node, tirx.Var):
        return x if node.same_as(_X) else y
    if isinstance(node, tirx.FloatImm):
        return np.full_like(x, node.value)
    if isinstance(node, tirx.IntImm):
        return np.full(x.shape, bool(node.value))
    if isinstance(node, tirx.Not):
        return ~_evaluate(node.a)
    if isinstance(node, tirx.Select):
        return np.where(*(_evaluate(part) for part in (node.condition, node.true_value, node.false_value)))
    if isinstance(node, tirx.Call):
        return np.where(*(_evaluate(part) for part in node.args))
    operation = {**_ARITHMETIC, **_COMPARE, **_LOGIC}[type(node)]
    with np.errstate(all="ignore"):
        return operation(_evaluate(node.a), _evaluate(node.b))


def _accepted(node: Any) -> bool:
    """Whether the verifier accepts ``Y[0] = node`` (or a select by it)."""
    value = node if str(node.dtype) == "float32" else tirx.if_then_else(node, _C, _ONE)
    buffer = tirx.decl_buffer((1,), "float32", scope="local.var")
    function = tirx.PrimFunc([_X, _Y], tirx.BufferStore(buffer, value, [0]))
    try:
        verify(function)
    except NotPortable:
        return False
    return True


def _same_bits(a: Any, b: Any) -> bool:
    if a.dtype != np.float32:
        return bool(np.array_equal(a, b))
    bits_a, bits_b = a.view(np.uint32), b.view(np.uint32)
    return bool(np.all((bits_a == bits_b) | (np.isnan(a) & np.isnan(b))))


def _arithmetic_trees() -> list[Any]:
    leaves = [_X, _Y, _C, _ZERO, _ONE]
    small = [operation(a, b) for operation in _ARITHMETIC for a in leaves for b in leaves]
    pairs = itertools.chain(
        itertools.product(small, leaves),
        itertools.product(leaves, small),
        itertools.product(small[::3], small[::2]),
    )
    selects = [tirx.Select(tirx.LT(_X, _Y), a, b) for a in leaves[:4] for b in leaves[:4]]
    pairs = itertools.chain(pairs, itertools.product(selects, leaves + selects), itertools.product(leaves, selects))
    return small + [operation(a, b) for a, b in pairs for operation in _ARITHMETIC]


def _condition_trees() -> list[Any]:
    compare = [comparison(a, b) for comparison in _COMPARE for a, b in itertools.product((_X, _Y), repeat=2)]
    negated = [tirx.Not(condition) for condition in compare]
    joined = [logic(a, b) for logic in _LOGIC for a in compare for b in compare]
    nested = [tirx.if_then_else(a, _C, tirx.if_then_else(b, _ONE, _ZERO)) for a in compare for b in compare]
    return compare + negated + joined + [tirx.Not(condition) for condition in joined] + nested


@pytest.mark.parametrize("trees", [_arithmetic_trees, _condition_trees])
def test_accepted_fp32_expressions_survive_the_simplifier(trees: Callable[[], list[Any]]) -> None:
    analyzer = tvm.arith.Analyzer()
    accepted = refused_for_cause = 0
    for tree in trees():
        kept = _same_bits(_evaluate(tree), _evaluate(analyzer.simplify(tree)))
        if _accepted(tree):
            accepted += 1
            assert kept, f"{tree} becomes {analyzer.simplify(tree)}"
        elif not kept:
            refused_for_cause += 1
    assert accepted > 100
    assert refused_for_cause > 50


def test_names_do_not_hide_a_pattern() -> None:
    total = tirx.Var("total", "float32")
    rules = Fp32Rules(lambda node: tirx.Add(_X, _C) if node.same_as(total) else node)
    found: list[str] = []
    rules.check(tirx.Sub(total, _C), found.append)
    assert len(found) == 1
