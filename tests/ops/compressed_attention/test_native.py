"""Native mode: the bound of docs/numerics.md against float64, and the matrix units in the generated code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from compressed_attention_oracle import attend
from own_process import printed

from kernelforge import backends, lowering
from kernelforge.formats import bf16
from kernelforge.ops.compressed_attention import conformance, conformance_data
from kernelforge.ops.compressed_attention.conformance_data import csa, hca

SEED = 5
PROBLEMS = ("csa", "hca")


def error_over_bound(case: conformance_data.Problem, device: str) -> float:
    """The largest error over sum(p |v|) at its place; the output's own rounding included."""
    found = bf16.decode(conformance.run(case, device, "native")["out"]).astype(np.float64)
    want, magnitude = attend(case)
    return float((np.abs(found - want) / np.maximum(magnitude, 1e-30)).max())


@pytest.mark.parametrize("data", ["normal", "student", "outlier"])
def test_errors_stay_within_the_bound(data, device):
    assert error_over_bound(csa(SEED, data), device) <= 2**-7


@pytest.mark.slow
@pytest.mark.parametrize("data", ["normal", "student", "outlier"])
def test_errors_of_split_decode_stay_within_the_bound(data, device):
    assert error_over_bound(hca(SEED, data), device) <= 2**-7


@pytest.mark.parametrize("data", ["nan_query", "nan_entry", "infinite_entry", "zeros", "sinks", "unseen"])
def test_what_is_not_finite_shows_where_the_contract_shows_it(data, device):
    case = csa(SEED, data)
    found = bf16.decode(conformance.run(case, device, "native")["out"])
    exact = bf16.decode(conformance.expected(case)["out"])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    assert np.nanmax(np.abs(found - exact), initial=0) <= 2**-7


AVX2 = """
import numpy as np
from kernelforge.formats import bf16
from kernelforge.ops.compressed_attention import conformance
from kernelforge.ops.compressed_attention.conformance_data import csa, hca
from test_native import error_over_bound
cases = [problem(3, data) for problem in (csa, hca) for data in ("normal", "student", "outlier")]
for case in (*cases, csa(3, "student", H=22, D=96, S=2, B=1, rope=0)):  # the last fills no tile
    assert error_over_bound(case, "cpu") <= 2**-7, case.name
for data in ("nan_query", "nan_entry", "infinite_entry"):
    case = csa(3, data)
    found, exact = (bf16.decode(x["out"]) for x in (conformance.run(case, "cpu", "native"), conformance.expected(case)))
    assert (np.isnan(found) == np.isnan(exact)).all() and np.isnan(exact).any(), case.name
print("within the bound")
"""


def test_cpus_with_avx2_alone_stay_within_the_bound():
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX2")
    assert printed(AVX2, __file__, KERNELFORGE_CPU_ISA="avx2") == "within the bound"


def test_two_runs_give_the_same_bits(device):
    case = csa(SEED)
    first, second = (conformance.run(case, device, "native")["out"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def lowered(variant: str, backend: str, arch: str, **changes: int) -> lowering.Lowered:
    """A kernel at V4-Flash's shapes in native mode."""
    spec = conformance.kernels(f"{backend}:virtual")[variant]
    portable = lowering.trace(spec.builder, {**dict(spec.parameters), "native": True, **changes})
    return lowering.lower(portable, backends.backend(backend), arch)


def test_the_cpu_takes_chunks_whole():
    spec = conformance.kernels("cpu")["csa"]
    portable = lowering.trace(spec.builder, {**dict(spec.parameters), "native": True})
    cpu = backends.backend("cpu")
    called = set(re.findall(r"kf_\w+", lowering.lower(portable, cpu, cpu.default_arch("cpu")).source))
    assert "kf_attention_chunk_native" in called
    assert not called & {"kf_attention_chunk", "kf_cut_rows"}


UNITS = {"sm_80": "mma.sync", "sm_90a": "wgmma.mma_async"}


@pytest.mark.parametrize("arch", UNITS)
def test_tensor_cores_multiply_bfloat16(arch, monkeypatch):
    monkeypatch.setenv("KERNELFORGE_CUDA_VIRTUAL_ARCH", arch)
    kernel = lowered("csa", "cuda", arch, D=64)
    products = set(re.findall(r"tl::(\w*mma\w*)<tl::DataType::(\w+), \S+ tl::DataType::(\w+)", kernel.source))
    assert products == {({"sm_80": "mma_sync", "sm_90a": "wgmma_ss"}[arch], "kBFloat16", "kFloat32")}
    assert kernel.info.rounded


def cube_products(kernel: lowering.Lowered) -> set[tuple[str, str]]:
    return set(re.findall(r"ascend_gemm_l1<[^>]*, (\w+)>\(\(\(__cc__ (\w+)\*\)", kernel.source))


def test_the_cube_unit_multiplies_bfloat16():
    kernel = lowered("hca", "ascend", backends.backend("ascend").archs()[0], D=64)
    assert cube_products(kernel) == {("bfloat16_t", "float")}
    assert kernel.info.rounded


@pytest.mark.slow
@pytest.mark.parametrize("variant", PROBLEMS)
def test_model_shapes_become_ascendc(variant):
    kernel = lowered(variant, "ascend", backends.backend("ascend").archs()[0])
    assert cube_products(kernel) == {("bfloat16_t", "float")}


@pytest.mark.slow
@pytest.mark.parametrize("arch", UNITS)
@pytest.mark.parametrize("variant", PROBLEMS)
def test_model_shapes_become_machine_code_without_spills(variant, arch, tmp_path, monkeypatch):
    from kernelforge_cuda import nvcc

    if nvcc.find() is None:
        pytest.skip("nvcc is not installed")
    monkeypatch.setenv("KERNELFORGE_CUDA_VIRTUAL_ARCH", arch)
    kernel = lowered(variant, "cuda", arch)
    backends.backend("cuda").build(kernel.source, kernel.info, arch, tmp_path)
    nvcc.assemble(tmp_path, kernel.info, arch, tmp_path)
    used = set(re.findall(r"\b(mma\.sync|wgmma\.mma_async)\S*\.f32\.bf16\.bf16", (tmp_path / nvcc.PTX).read_text()))
    assert used == {UNITS[arch]}
    resources = json.loads((tmp_path / nvcc.RESOURCES).read_text())["kernels"][kernel.info.entry]
    assert resources["spill_store_bytes"] == resources["spill_load_bytes"] == 0


WARP_GROUPS = """
from kernelforge.ops.compressed_attention.conformance_data import csa, hca
from test_native import error_over_bound
for case in (csa(3, "student", H=64, S=2, B=1, rope=0), hca(3, H=64, B=1, page=0)):
    assert error_over_bound(case, "cuda:virtual") <= 2**-7, case.name
print("within the bound")
"""


@pytest.mark.slow
def test_warp_groups_stay_within_the_bound():
    assert printed(WARP_GROUPS, __file__, KERNELFORGE_CUDA_VIRTUAL_ARCH="sm_90a") == "within the bound"
