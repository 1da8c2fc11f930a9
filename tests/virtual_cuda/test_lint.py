"""The artifact lint names every instruction that exact mode forbids, and no other."""

from __future__ import annotations

import shutil

import pytest

from kernelforge_cuda.virtual import compile_ptx, lint_ptx

FORBIDDEN = [
    "ex2.approx.ftz.f32 %f1, %f2;",
    "rsqrt.approx.f32 %f1, %f2;",
    "div.rn.f32 %f1, %f2, %f3;",
    "div.full.f32 %f1, %f2, %f3;",
    "sqrt.rn.f32 %f1, %f2;",
    "rcp.rn.f32 %f1, %f2;",
    "sin.approx.f32 %f1, %f2;",
    "tanh.approx.f32 %f1, %f2;",
    "lg2.approx.f32 %f1, %f2;",
    "fma.rn.f32 %f1, %f2, %f3, %f4;",
    "fma.rn.bf16x2 %r1, %r2, %r3, %r4;",
    "@%p1 fma.rn.f32 %f1, %f2, %f3, %f4;",
    "add.ftz.f32 %f1, %f2, %f3;",
    "mul.rz.f32 %f1, %f2, %f3;",
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f1}, {%r1}, {%r2}, {%f1};",
    "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1}, {%r1}, {%r2}, {%r1};",
    "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f1}, %rd1, %rd2, p, 1, 1;",
    "atom.global.add.f32 %f1, [%rd1], %f2;",
    "red.global.add.f32 [%rd1], %f2;",
    "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r1], 16;",
]
ALLOWED = [
    "add.rn.f32 %f1, %f2, %f3;",
    "mul.f32 %f1, %f2, %f3;",
    "mad.lo.s32 %r1, %r2, %r3, %r4;",
    "div.u32 %r1, %r2, %r3;",
    "rem.s64 %rd1, %rd2, %rd3;",
    "atom.global.add.u32 %r1, [%rd1], 1;",
    "red.shared.max.s32 [%r1], 1;",
    "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}, {%r1}, {%r2}, {%r1};",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};",
    "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%f1}, %rd1, %rd2, p, 1, 1;",
    "cvt.rn.bf16.f32 %h1, %f1;",
    "cvt.rzi.s32.f32 %r1, %f1;",
    "// ex2.approx.f32 in a comment",
    ".reg .f32 %ex2;",
]


@pytest.mark.parametrize("text", FORBIDDEN)
def test_forbidden_instructions_are_found_with_their_line(text: str) -> None:
    findings = lint_ptx(f'.file 1 "/somewhere/kernel.cu"\n.loc 1 77 0\n{{\n\t{text}\n}}\n')
    assert [(f.line, f.source) for f in findings] == [(4, "kernel.cu:77")]
    assert findings[0].opcode in text
    assert findings[0].opcode in str(findings[0])


@pytest.mark.parametrize("text", ALLOWED)
def test_exact_instructions_pass(text: str) -> None:
    assert lint_ptx(f"\t{text}\n") == []


def test_the_caller_may_allow_products_it_knows_to_be_exact() -> None:
    text = "fma.rn.f32 %f1, %f2, %f3, %f4;\nfma.rn.f32 %f5, %f6, %f7, %f8;\n"
    assert lint_ptx(text, allow_fma=True) == []
    assert [f.line for f in lint_ptx(text, allow_fma=lambda statement: "%f1," in statement)] == [2]


def test_several_statements_of_one_line_are_all_seen() -> None:
    assert len(lint_ptx("{ .reg .f32 t; ex2.approx.f32 t, %f1; LAB: rcp.rn.f32 %f2, t; }")) == 2


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_dropping_the_contraction_flag_is_found() -> None:
    source = 'extern "C" __global__ void k(float* x) { x[0] = x[1] * x[2] + x[3]; }'
    assert lint_ptx(compile_ptx(source, "sm_80", includes=[])) == []
    assert [f.opcode for f in lint_ptx(compile_ptx(source, "sm_80", includes=[], flags=()))] == ["fma.rn.f32"]
