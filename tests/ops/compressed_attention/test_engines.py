"""The microkernel's engines give one set of bits; kernels compile at the model's shapes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from own_process import printed

from kernelforge import backends, lowering
from kernelforge.ops.compressed_attention import conformance

RUN = """
from kernelforge.ops.compressed_attention import conformance
cases = [problem(3, data) for problem in (conformance.csa, conformance.hca)
         for data in ("student", "bits", "nan_entry", "infinite_entry", "nan_query", "huge", "tiny", "zeros")]
cases = [(case, numerics) for case in cases for numerics in NUMERICS]
# Neither fills tiles; in native mode these are no chunks of the microkernel.
cases.append((conformance.csa(3, "student", H=22, D=96, S=2, B=1, rope=0), "exact"))
for case, numerics in cases:
    assert (conformance.run(case, "cpu", numerics)["out"] == conformance.expected(case)["out"]).all(), case.name
print("same bits")
"""


@pytest.mark.parametrize(("isa", "numerics"), [("portable", ("exact", "native")), ("avx2", ("exact",))])
def test_every_engine_gives_the_references_bits(isa, numerics):
    """The portable one in native mode too: it takes the exact path."""
    if isa == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX2")
    assert printed(RUN.replace("NUMERICS", repr(numerics)), __file__, KERNELFORGE_CPU_ISA=isa) == "same bits"


def test_the_cpu_takes_chunks_whole():
    backend = backends.backend("cpu")
    found = conformance.kernels("cpu")
    for spec in (found["csa"], found["hca"]):
        portable = lowering.trace(spec.builder, dict(spec.parameters))
        source = lowering.lower(portable, backend, backend.default_arch("cpu")).source
        assert {"kf_attention_chunk", "kf_cut_rows"} <= set(re.findall(r"kf_\w+", source))
        assert "kf_gemm_s8" not in source


VARIANTS = list(conformance.kernels("cuda:virtual"))
PRODUCTS = {"csa", "hca", "products", "query_gradient", "entry_gradient"}
"""Kernels that multiply matrices."""


WARP_GROUPS = """
from kernelforge.ops.compressed_attention import conformance
for case in (conformance.csa(3, "student", H=64, S=2, B=1, rope=0), conformance.hca(3, H=64, B=1, page=0)):
    assert (conformance.run(case, "cuda:virtual")["out"] == conformance.expected(case)["out"]).all(), case.name
print("same bits")
"""

SHARED_BYTES = {"sm_80": 163 << 10, "sm_90a": 227 << 10}
"""Shared memory that a block may have."""


def lowered_for(arch: str, variant: str, monkeypatch: pytest.MonkeyPatch, **changes: int):
    """A kernel under the schedule of an architecture."""
    monkeypatch.setenv("KERNELFORGE_CUDA_VIRTUAL_ARCH", arch)
    spec = conformance.kernels("cuda:virtual")[variant]
    parameters = {**dict(spec.parameters), **changes}
    return lowering.lower(lowering.trace(spec.builder, parameters), backends.backend("cuda"), arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_model_shapes_become_machine_code_without_spills(variant, arch, tmp_path, monkeypatch):
    """Products run on the matrix unit; on sm_90a all of them by warp groups: 64 heads, values transposed."""
    from kernelforge_cuda import nvcc

    if nvcc.find() is None:
        pytest.skip("nvcc is not installed")
    lowered = lowered_for(arch, variant, monkeypatch)
    backends.backend("cuda").build(lowered.source, lowered.info, arch, tmp_path)
    nvcc.assemble(tmp_path, lowered.info, arch, tmp_path)
    ptx = (tmp_path / nvcc.PTX).read_text()
    used = set(re.findall(r"\b(mma\.sync|wgmma\.mma_async)\S*\.s32\.s8\.s8", ptx))
    assert used == ({"wgmma.mma_async" if arch == "sm_90a" else "mma.sync"} if variant in PRODUCTS else set())
    assert lowered.info.shared_bytes <= SHARED_BYTES[arch]
    assert (tmp_path / nvcc.CUBIN).read_bytes()[:4] == b"\x7fELF"
    resources = json.loads((tmp_path / nvcc.RESOURCES).read_text())["kernels"][lowered.info.entry]
    assert resources["spill_store_bytes"] == resources["spill_load_bytes"] == 0


@pytest.mark.slow
def test_128_heads_are_two_blocks_on_the_matrix_unit(monkeypatch):
    lowered = lowered_for("sm_90a", "csa", monkeypatch, H=128)
    products = set(re.findall(r"tl::(\w*mma\w*)<tl::DataType::kInt8", lowered.source))
    assert products == {"wgmma_ss"}
    assert lowered.info.grid == ("Q", "2")  # CUDA puts the long axis first


@pytest.mark.slow
def test_warp_group_products_give_the_references_bits():
    assert printed(WARP_GROUPS, __file__, KERNELFORGE_CUDA_VIRTUAL_ARCH="sm_90a") == "same bits"


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_model_shapes_become_ascendc(variant):
    backend = backends.backend("ascend")
    spec = conformance.kernels("ascend:virtual")[variant]
    lowered = lowering.lower(
        lowering.trace(spec.builder, dict(spec.parameters)), backend, backend.default_arch("ascend:virtual")
    )
    assert ("ascend_gemm_l1" in lowered.source) == (variant in PRODUCTS)
