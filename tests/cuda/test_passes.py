"""Each CUDA pass does to the IR what its docstring says, and no more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import cuda_kernels as kernels

from kernelforge.backends.execution import Execution, executing
from kernelforge.lowering.tir import called, post_order, tirx
from kernelforge_cuda import passes
from kernelforge_cuda.passes.long_axis_first import exchanged


def body_lines(function) -> list[str]:
    return [line.strip() for line in function.script().splitlines() if line.strip()]


def changed(before, after) -> tuple[list[str], list[str]]:
    """Lines that only one of the two functions has."""
    old, new = body_lines(before), body_lines(after)
    return [line for line in old if line not in new], [line for line in new if line not in old]


def test_separate_products_golden():
    before = kernels.axpy()
    removed, added = changed(before, passes.separate_products(before))
    assert removed == [
        "out[bx * 16 + i, j] = a[bx * 16 + i, j] * x[bx * 16 + i, j] + y[bx * 16 + i, j]",
    ]
    assert added == [
        "out[bx * 16 + i, j] = T.fmul(a[bx * 16 + i, j], x[bx * 16 + i, j]) + y[bx * 16 + i, j]",
    ]


def test_lower_composites_golden():
    before = kernels.doubled_region()
    removed, added = changed(before, passes.lower_composites(before))
    assert len(removed) == 1
    assert removed[0].startswith("with T.attr(")
    assert '"kf.composite"' in removed[0]
    assert added == []


def test_no_fp32_product_of_the_gemm_can_fuse():
    parameters = {
        "N": 64,
        "K": 128,
        "experts": 0,
        "a_format": "e4m3_f32",
        "out_dtype": "float32",
        **kernels.SMALL,
    }
    function = kernels.trace(kernels.GEMM, parameters)
    for step in passes.PIPELINE:
        function = step(function)
    seen = {"product": 0, "tl.fmul": 0, "tl.tileop.gemm": 0, "integer product": 0}

    def visit(node):
        if isinstance(node, tirx.Mul):
            seen["product" if str(node.dtype).startswith("float") else "integer product"] += 1
        elif called(node) in seen:
            seen[called(node)] += 1

    post_order(function.body, visit)
    assert seen["product"] == 0
    assert seen["tl.fmul"] == 3  # factor of the scale, factor of the block, its term
    assert seen["tl.tileop.gemm"] == 2
    assert seen["integer product"] > 0


@pytest.mark.parametrize(
    ("fixed", "other"),
    [
        ((True, False), 1),
        ((True, True, False), 2),
        ((True, False, True), 1),
        ((False, True), None),
        ((True, True), None),
        ((False, False), None),
        ((False,), None),
    ],
)
def test_the_axis_that_grows_is_found(fixed, other):
    assert exchanged(fixed) == other


def test_long_axis_first_golden():
    before = kernels.rows_along_y()
    removed, added = changed(before, passes.long_axis_first(before))
    assert len(removed) == len(added) == 2
    assert [("blockIdx.x" in line, "blockIdx.y" in line) for line in (*removed, *added)] == [
        (True, False),
        (False, True),
        (False, True),
        (True, False),
    ]
    assert passes.long_axis_first(kernels.axpy()).script() == kernels.axpy().script()


def test_rows_beyond_65535_blocks(tmp_path):
    lowered = kernels.lower(kernels.rows_along_y(), kernels.backend, "sm_80")
    assert lowered.info.grid == ("rows", "2")
    x = torch.arange(70000 * 64, dtype=torch.int32).view(70000, 64)
    out = torch.empty_like(x)
    kernels.backend.build(lowered.source, lowered.info, "sm_80", tmp_path)
    with executing(Execution(check=False)):
        kernels.backend.load(tmp_path, lowered.info, "cuda:virtual")(x, out)
    assert torch.equal(out, x + 1)


@pytest.mark.parametrize("arch", kernels.backend.archs())
def test_source_multiplies_and_adds_apart(arch):
    source = kernels.lower(kernels.axpy(), kernels.backend, arch).source
    assert "fma" not in source
    assert "__fmul_rn(" in source or "tl::mul2(" in source


@pytest.mark.parametrize("step", passes.PIPELINE, ids=lambda step: step.__name__)
def test_every_pass_says_what_it_does(step):
    assert step.__doc__
    assert len(step.__doc__) > 40
