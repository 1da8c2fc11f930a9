"""TileLang's scheduler sees no buffer of one vector function alone, and its result is the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import ascend_kernels as kernels
import ascend_pass_kernels as small
from ascend_harness import backend

from kernelforge.lowering import lower
from kernelforge.lowering.tir import structurally_equal, tirx
from kernelforge_ascend import passes
from kernelforge_ascend.backend import ARCH
from kernelforge_ascend.passes import hide_locals as module
from kernelforge_ascend.passes.hide_locals import hide_locals, reveal_locals
from kernelforge_ascend.passes.rewriter import walk


def through_passes(function):
    for step in passes.PIPELINE:
        function = step(function)
    return function


def accesses(function) -> list[str]:
    """Names of the storage that loads and stores meet."""
    found: list[str] = []

    def visit(node) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.BufferStore)):
            found.append(node.buffer.data.name)

    walk(function.body, visit)
    return found


def texts(function) -> list[str]:
    return [line.strip() for line in function.script().splitlines()]


def test_hide_locals_golden():
    before = through_passes(small.elementwise())
    hidden = hide_locals(before)
    assert "twice" in accesses(before)
    assert set(accesses(hidden)) == set(accesses(before)) - {"twice"}
    (store,) = [line for line in texts(hidden) if "kf_store_local" in line]
    assert store.startswith('T.call_extern("int32", "kf_store_local", 0, ')
    (load,) = [line for line in texts(hidden) if "kf_load_local" in line]
    assert 'T.call_pure_extern("float32", "kf_load_local", 1, 0)' in load, "loads have a view of their own"
    assert [buffer.data.name for buffer in hidden.attrs[module.HIDDEN]] == ["twice", "twice"]


@pytest.mark.parametrize("kernel", [small.elementwise, small.picks, small.parts, small.direct_rows])
def test_reveal_locals_golden_gives_the_function_back(kernel):
    before = through_passes(kernel())
    after = reveal_locals(hide_locals(before))
    assert structurally_equal(before, after)
    assert accesses(before) == accesses(after)


def test_what_an_index_or_a_bound_depends_on_stays():
    before = through_passes(small.picks())
    assert {"at", "count", "added"} <= set(accesses(before))
    assert {"at", "count", "added"} & set(accesses(hide_locals(before))) == {"at", "count"}


@pytest.mark.parametrize(
    "kernel",
    [small.elementwise, small.picks, small.doubled_operand, lambda: kernels.interrupted_gemm(32, 64, 128, 32)],
)
def test_the_generated_code_is_that_without_hiding(kernel, monkeypatch):
    hiding = lower(kernel(), backend, ARCH).source
    monkeypatch.setattr(module, "hide_locals", lambda function: function)
    monkeypatch.setattr(module, "reveal_locals", lambda function: function)
    assert lower(kernel(), backend, ARCH).source == hiding
    assert "kf_load_local" not in hiding
