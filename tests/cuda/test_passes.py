"""Each CUDA pass does to the IR what its docstring says, and no more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cuda_kernels as kernels

from kernelforge.lowering.tir import called, post_order, tirx
from kernelforge_cuda import passes


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


@pytest.mark.parametrize("arch", kernels.backend.archs())
def test_source_multiplies_and_adds_apart(arch):
    source = kernels.lower(kernels.axpy(), kernels.backend, arch).source
    assert "fma" not in source
    assert "__fmul_rn(" in source or "tl::mul2(" in source


@pytest.mark.parametrize("step", passes.PIPELINE, ids=lambda step: step.__name__)
def test_every_pass_says_what_it_does(step):
    assert step.__doc__
    assert len(step.__doc__) > 40
