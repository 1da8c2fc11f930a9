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
from kernelforge_cuda import nvcc, passes
from kernelforge_cuda.passes.long_axis_first import exchanged
from kernelforge_cuda.passes.mx_blocks import Work
from kernelforge_cuda.virtual import compile_ptx


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


def gemm(a_format, **schedule):
    parameters = {"N": 64, "K": 128, "experts": 0, "a_format": a_format, "out_dtype": "float32"}
    return kernels.trace(kernels.GEMM, {**parameters, **kernels.SMALL, **schedule})


def test_take_mx_blocks_golden():
    before = gemm("bf16")
    removed, added = changed(before, passes.take_mx_blocks(before))
    assert sum('"kf.composite"' in line and '"mx_block_accumulate"' in line for line in removed) == 1
    for buffer in ("a_integers", "w_integers", "a_factor", "dot", "exponent"):
        assert any(line.startswith(f"{buffer} = T.sblock_alloc_buffer(") for line in removed)
    (call,) = [line for line in added if "T.call_extern(" in line]
    assert call == (
        'T.call_extern("void", "kf::mx_block_accumulate<3, 64, 64, 128, 128>", T.address_of(acc_1[0, 0]), '
        "T.address_of(a[0, 0]), T.address_of(a_scale[0, 0]), T.address_of(w_1[0, 0]), T.address_of(w_scale[0, 0]), "
        "T.address_of(acc_scratch[0]))"
    )
    assert 'acc_scratch = T.sblock_alloc_buffer((19472,), "uint8", scope="shared.dyn")' in added
    assert any("layout_map" in line for line in added)
    assert sum("coalesced_width=4" in line for line in added) == 1  # bfloat16 activations carry no scales


@pytest.mark.parametrize(
    ("a_format", "schedule"),
    [
        ("e4m3_f32", {}),
        ("bf16", {"block_M": 8}),
        ("e2m1", {"block_M": 96}),
        ("e2m1", {"block_N": 24}),
        ("bf16", {"block_M": 128, "threads": 32}),
    ],
    ids=str,
)
def test_tiles_that_warps_do_not_divide_keep_their_body(a_format, schedule):
    before = gemm(a_format, **schedule)
    assert passes.take_mx_blocks(before).script() == before.script()


@pytest.mark.parametrize("arch", kernels.backend.archs())
@pytest.mark.parametrize("a_format", kernels.A_FORMATS)
def test_what_is_taken_whole_depends_on_architecture_and_scales(a_format, arch):
    taken = arch != "sm_80" and a_format != "e4m3_f32"
    assert ("kf::mx_block_accumulate<" in kernels.lower_gemm(arch, a_format).source) is taken


@pytest.mark.skipif(nvcc.find() is None, reason="nvcc is not installed")
def test_the_memory_reserved_for_mx_blocks_is_what_they_use():
    works = [
        Work(a_format, rows, columns, depth, threads)
        for a_format in (0, 1, 3)
        for rows, columns, depth, threads in (
            (16, 32, 512, 128),
            (32, 32, 256, 64),
            (64, 256, 128, 256),
            (128, 64, 384, 256),
            (16, 8, 32, 32),
        )
    ]
    assert all(work.fits for work in works)
    asserted = "".join(
        f"static_assert(sizeof(kf::MxBlocks<kf::MxFormat({w.format}), {w.rows}, {w.columns}, {w.depth}, {w.threads}>"
        f"::Scratch) == {w.scratch});\n"
        for w in works
    )
    compile_ptx(f'#include <mx_block.h>\n{asserted}extern "C" __global__ void nothing() {{}}\n', "sm_90a")


@pytest.mark.parametrize("depth", range(32, 513, 32))
def test_every_byte_of_weights_and_every_sum_has_a_place_of_its_own(depth):
    work = Work(3, 128, 64, depth, 128)
    places = [work.weights(i, j) for i in range(64) for j in range(depth // 2)]
    assert sorted(places) == list(range(64 * depth // 2))
    sums = [work.sums(i, j) for i in range(128) for j in range(64)]
    assert sorted(sums) == [(thread, place) for thread in range(128) for place in range(64)]


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


@pytest.mark.parametrize("step", passes.BF16_PIPELINE, ids=lambda step: step.__name__)
def test_every_pass_says_what_it_does(step):
    assert step.__doc__
    assert len(step.__doc__) > 40
