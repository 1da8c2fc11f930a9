"""Golden tests of the passes that backends share: the statements of a kernel before and after."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import accepted_kernels

from kernelforge.lowering import (
    composite_of,
    composites_in,
    lower_composites,
    lower_rounded_dots,
    pin_fp32,
    rounds_dots,
    take_composites,
)
from kernelforge.lowering.tir import statement_location, tirx


def _statements(function: Any) -> list[str]:
    """The printed statements of the kernel's body, without declarations."""
    lines = function.script().splitlines()
    start = next(number for number, line in enumerate(lines) if "sblock_attr" in line) + 1
    return [line.strip() for line in lines[start:] if "sblock_alloc_buffer" not in line]


BEFORE = [
    'T.attr({"variant": 2}, "kf.composite", T.call_extern("int32", "outer", X[0], Y[0]))',
    'T.attr({}, "kf.composite", T.call_extern("int32", "inner", Y[0]))',
    "for i in T.parallel(64):",
    "Y[i] = X[i] * T.float32(0.25)",
]


def test_lower_composites_golden() -> None:
    kernel = accepted_kernels.composites()
    assert _statements(kernel) == BEFORE
    assert _statements(lower_composites(kernel)) == BEFORE[2:]
    assert _statements(kernel) == BEFORE, "the kernel itself is not changed"


def test_take_composites_replaces_the_named_region_and_lowers_the_others() -> None:
    def take(composite: Any) -> Any:
        assert (composite.name, composite.parameters, len(composite.operands)) == ("inner", {}, 1)
        return tirx.Evaluate(tirx.call_extern("int32", "fast_inner", composite.operands[0]))

    taken = take_composites(accepted_kernels.composites(), {"inner": take})
    assert _statements(taken) == ['T.call_extern("int32", "fast_inner", Y[0])']


def test_take_composites_takes_the_outermost_region_whole() -> None:
    seen: list[Any] = []

    def take(composite: Any) -> Any:
        seen.append(composite)
        return composite.body

    taken = take_composites(accepted_kernels.composites(), {"outer": take})
    assert [composite.name for composite in seen] == ["outer"]
    assert seen[0].parameters == {"variant": 2}
    assert [str(operand) for operand in seen[0].operands] == ["X[0]", "Y[0]"]
    assert _statements(taken) == BEFORE[1:]


def test_composites_in_finds_nested_regions() -> None:
    found = composites_in(accepted_kernels.composites())
    assert sorted(composite.name for composite in found) == ["inner", "outer"]
    assert composite_of(found[0].body) is None or found[0].name == "outer"


def test_pin_fp32_golden() -> None:
    kernel = lower_composites(accepted_kernels.composites())
    assert _statements(pin_fp32(kernel)) == [
        "for i in T.parallel(64):",
        'Y[i] = T.call_pure_extern("float32", "kf_mul", X[i], T.call_pure_extern("float32", "kf_f", 1048576000))',
    ]


def test_pin_fp32_passes_integers_tile_operators_and_reinterpretation() -> None:
    pinned = _statements(pin_fp32(accepted_kernels.rounding_by_bits()))
    text = "\n".join(pinned)
    assert "T.reinterpret" not in text
    assert 'T.Cast("int8", T.call_pure_extern("int32", "kf_i", T.call_pure_extern("float32", "kf_add", ' in text
    assert "- 1262485504" in text, "the magic constant is subtracted as an integer"
    gemm = accepted_kernels.pipelined_int8_gemm()
    assert _statements(pin_fp32(gemm)) == _statements(gemm)


def test_statements_know_their_source_line() -> None:
    places: list[Any] = []

    def visit(node: Any) -> None:
        if isinstance(node, tirx.BufferStore):
            places.append(statement_location(node))

    tirx.stmt_functor.post_order_visit(accepted_kernels.composites().body, visit)
    ((file, line),) = places
    assert "T.float32(0.25)" in Path(file).read_text().splitlines()[line - 1]


def test_lower_rounded_dots_golden() -> None:
    kernel = accepted_kernels.rounded_product()
    assert rounds_dots(kernel)
    assert not rounds_dots(accepted_kernels.composites())
    text = lower_rounded_dots(kernel).script()
    assert 'a = T.sblock_alloc_buffer((16, 32), "bfloat16", scope="shared.dyn")' in text
    assert 'b = T.sblock_alloc_buffer((16, 32), "bfloat16", scope="shared.dyn")' in text
    assert 'a[i, k] = T.reinterpret("bfloat16", X[i, k])' in text
    assert 'b[i, k] = T.reinterpret("bfloat16", T.reinterpret("uint16", a[i, k]))' in text
    assert text.count("T.gemm(") == 1
    assert "kf.composite" not in text


def test_operands_of_rounded_dots_are_not_copied() -> None:
    with pytest.raises(ValueError, match=r"fill and read it with T\.Parallel"):
        lower_rounded_dots(accepted_kernels.rounded_product(copied=True))
