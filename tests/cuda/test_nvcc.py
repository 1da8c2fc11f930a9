"""What becomes of generated source: exact PTX, machine code without spills, or a clear error."""

from __future__ import annotations

import re
import stat
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import cuda_kernels as kernels

from kernelforge.backends import CompileFailed, CompilerMissing, LaunchInfo, Parameter
from kernelforge.lowering import lower, trace
from kernelforge.ops.spec import specs
from kernelforge.runtime import cache
from kernelforge.runtime.tuning import matches
from kernelforge_cuda import nvcc

needs_nvcc = pytest.mark.skipif(nvcc.find() is None, reason="nvcc is not installed")
PLAIN = LaunchInfo("plain", (), (Parameter("out", "tensor", "handle"),), ("1",))


def plain(body: str) -> str:
    return f'extern "C" __global__ void plain(float* out) {{ {body} }}\n'


def opcodes(ptx: str) -> set[str]:
    return set(re.findall(r"^\s+(?:@!?%\w+\s+)?([a-z][\w.:]*)", ptx, re.MULTILINE))


@needs_nvcc
@pytest.mark.parametrize(("a_format", "experts", "arch"), kernels.GEMMS)
def test_gemm_compiles_to_exact_ptx_without_spills(a_format, experts, arch):
    built = kernels.built_gemm(arch, a_format, experts)
    used = built.report["kernels"][built.info.entry]
    assert 0 < used["registers"] <= 255
    assert used["spill_store_bytes"] == used["spill_load_bytes"] == used["stack_bytes"] == 0
    assert built.report["warnings"] == []
    ptx = built.ptx
    found = opcodes(ptx)
    assert {"mul.rn.f32", "add.rn.f32"} <= found
    assert not {opcode for opcode in found if opcode.startswith(("fma", "div", "sqrt", "rsqrt", "rcp", "ex2", "lg2"))}
    if arch == "sm_80":
        engine = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"
    elif a_format == "e4m3_f32":
        engine = "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8"
    else:
        engine = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    assert engine in ptx
    assert (built.directory / nvcc.CUBIN).read_bytes()[:4] == b"\x7fELF"


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("a_format", kernels.A_FORMATS)
@pytest.mark.parametrize(("N", "K", "experts"), [(4096, 4096, 0), (7168, 2048, 0), (2048, 7168, 0), (4096, 2048, 8)])
def test_tuned_schedules_do_not_spill_at_model_shapes(N, K, experts, a_format, arch, tmp_path):
    problem = {"N": N, "K": K, "experts": experts, "a_format": a_format, "arch": arch}
    schedules = [
        row["set"]
        for row in kernels.backend.tuning("mxfp4_gemm")
        if all(matches(condition, problem[name]) for name, condition in row["when"].items() if name != "M")
    ]
    assert schedules
    for number, schedule in enumerate(schedules):
        directory = tmp_path / str(number)
        directory.mkdir()
        lowered = kernels.lower_gemm(arch, a_format, experts, N, K, **schedule)
        used = kernels.build(lowered, arch, directory)["kernels"][lowered.info.entry]
        assert (used["spill_store_bytes"], used["spill_load_bytes"]) == (0, 0), schedule


# At a decoder's width; one stands for the others on an ordinary run. On other architectures the GEMM's tuned schedules
# are compiled above.
MXFP4_KERNELS = [
    pytest.param(
        spec,
        arch,
        id=f"{op}-{variant}-{arch}",
        marks=[] if (op, variant, arch) == ("mxfp4_gemm", "e2m1", "sm_100a") else pytest.mark.slow,
    )
    for op in ("mxfp4_gemm", "mx_quantize", "fp4_to_fp8")
    for variant, spec in specs()[op].kernel_specs("cuda").items()
    for arch in (("sm_100a",) if op == "mxfp4_gemm" else nvcc.ARCHS)
]


@needs_nvcc
@pytest.mark.parametrize(("spec", "arch"), MXFP4_KERNELS)
def test_mxfp4_kernels_compile_at_a_decoders_width_without_spills(spec, arch, tmp_path):
    lowered = lower(trace(spec.builder, dict(spec.parameters)), kernels.backend, arch)
    used = kernels.build(lowered, arch, tmp_path)["kernels"][lowered.info.entry]
    assert used["spill_store_bytes"] == used["spill_load_bytes"] == 0
    ptx = (tmp_path / nvcc.PTX).read_text()
    assert f".target {arch}" in ptx
    assert not {opcode for opcode in opcodes(ptx) if opcode.startswith(("fma", "div", "sqrt", "rsqrt", "rcp", "ex2"))}


@needs_nvcc
def test_fused_pairs_are_refused_on_blackwell(tmp_path):
    """What TileLang prints without ``separate_products``: the check of the PTX is a second line of defence."""
    source = "#include <tl_templates/cuda/common.h>\n" + plain(
        "float2* p = (float2*)out; p[0] = tl::fma2(p[1], p[2], p[3]);"
    )
    with pytest.raises(CompileFailed, match=r"fma\.rn\.f32x2"):
        nvcc.build(source, PLAIN, "sm_100a", tmp_path)


@needs_nvcc
@pytest.mark.parametrize(
    ("body", "opcode"),
    [
        ("out[0] = __fdividef(out[1], out[2]);", r"div\.approx"),
        ("out[0] = __expf(out[1]);", r"ex2\.approx"),
        ("out[0] = sqrtf(out[1]);", r"sqrt\.rn"),
        ("atomicAdd(out, out[1]);", r"(atom|red)\.global\.add\.f32"),
    ],
)
def test_inexact_instruction_is_refused(body, opcode, tmp_path):
    with pytest.raises(CompileFailed, match=opcode) as failure:
        nvcc.build(plain(body), PLAIN, "sm_80", tmp_path)
    assert "kernelforge.numerics" in str(failure.value)


@needs_nvcc
def test_product_and_sum_stay_apart(tmp_path):
    nvcc.build(plain("out[0] = out[1] * out[2] + out[3];"), PLAIN, "sm_80", tmp_path)
    found = opcodes((tmp_path / nvcc.PTX).read_text())
    assert {"mul.rn.f32", "add.rn.f32"} <= found
    assert not any(opcode.startswith("fma") for opcode in found)


@needs_nvcc
def test_rejected_source_gives_the_compilers_words(tmp_path):
    with pytest.raises(CompileFailed, match='identifier "undeclared" is undefined') as failure:
        nvcc.build(plain("undeclared = 1;"), PLAIN, "sm_80", tmp_path)
    assert "plain" in str(failure.value)


@needs_nvcc
def test_block_that_needs_too_much_shared_memory_is_refused(tmp_path):
    info = LaunchInfo("plain", (), PLAIN.parameters, ("1",), shared_bytes=200 * 1024)
    with pytest.raises(CompileFailed, match="204800 bytes of shared memory per block, sm_80 has 166912"):
        nvcc.build(plain("out[0] = 1;"), info, "sm_80", tmp_path)


@needs_nvcc
def test_what_the_compiler_adds_to_shared_memory_counts(tmp_path):
    info = LaunchInfo("plain", (), PLAIN.parameters, ("1",), shared_bytes=150 * 1024)
    body = "__shared__ float tile[8192]; tile[threadIdx.x] = out[0]; __syncthreads(); out[1] = tile[out[2] > 0];"
    nvcc.build(plain(body), info, "sm_80", tmp_path)
    with pytest.raises(CompileFailed, match="186368 bytes of shared memory per block, sm_80 has 166912"):
        nvcc.assemble(tmp_path, info, "sm_80", tmp_path)


@needs_nvcc
def test_machine_code_is_assembled_once_from_the_ptx_that_was_checked(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "shared", cache.Cache(tmp_path / "cache"))
    built = tmp_path / "built"
    built.mkdir()
    nvcc.build(plain("out[0] = 1;"), PLAIN, "sm_80", built)
    assert sorted(path.name for path in built.iterdir()) == [nvcc.SOURCE, nvcc.PTX]
    made = nvcc.machine_code(built, PLAIN, "sm_80")
    assert (made / nvcc.CUBIN).read_bytes()[:4] == b"\x7fELF"
    monkeypatch.setattr(nvcc, "assemble", lambda *given: pytest.fail("assembled again"))
    assert nvcc.machine_code(built, PLAIN, "sm_80") == made
    with pytest.raises(pytest.fail.Exception, match="assembled again"):
        nvcc.machine_code(built, PLAIN, "sm_90a")


def test_unknown_arch_names_the_known_ones(tmp_path):
    with pytest.raises(CompileFailed, match="'sm_70'; the CUDA backend compiles for sm_80, sm_90a, sm_100a"):
        nvcc.build(plain(""), PLAIN, "sm_70", tmp_path)


def test_missing_nvcc_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(nvcc, "find", lambda: None)
    with pytest.raises(CompilerMissing, match=r"nvidia-cuda-nvcc.*CUDA_HOME"):
        nvcc.build(plain(""), PLAIN, "sm_80", tmp_path)
    assert not nvcc.tool().found
    assert "nvidia-cuda-nvcc" in nvcc.tool().detail


def _executable(path: Path, text: str = "#!/bin/sh\nexit 3\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_nvcc_is_found_on_path_then_in_cuda_home_then_in_the_wheel(monkeypatch, tmp_path):
    on_path = _executable(tmp_path / "path" / "nvcc")
    in_home = _executable(tmp_path / "home" / "bin" / "nvcc")
    in_wheel = _executable(tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(in_home.parent.parent))
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert nvcc.find() == str(on_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert nvcc.find() == str(in_home)
    monkeypatch.delenv("CUDA_HOME")
    assert nvcc.find() == str(in_wheel)


def test_nvcc_that_does_not_run_is_reported(monkeypatch, tmp_path):
    broken = _executable(tmp_path / "nvcc", "not a program")
    monkeypatch.setattr(nvcc, "find", lambda: str(broken))
    with pytest.raises(CompilerMissing, match="does not run"):
        nvcc.build(plain(""), PLAIN, "sm_80", tmp_path)
    assert not nvcc.tool().found


def test_resources_are_read_from_what_ptxas_says():
    said = """ptxas info    : 9 bytes gmem, 72 bytes cmem[4]
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 121 registers, used 5 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 396 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Used 8 registers, 360 bytes cmem[0]
"""
    assert nvcc.parse_resources(said) == {
        "first": nvcc.Resources(121, 16, 8, 4, 1024, 5),
        "second": nvcc.Resources(8, 0, 0, 0, 0, 0),
    }
