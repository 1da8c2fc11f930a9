"""The microkernel's engines give one set of bits; kernels compile at the model's shapes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernelforge import backends, lowering
from kernelforge.ops.compressed_attention import conformance

RUN = """
from kernelforge.ops.compressed_attention import conformance
for problem in (conformance.csa, conformance.hca):
    for data in ("student", "bits", "nan_entry", "huge", "tiny", "zeros"):
        case = problem(3, data)
        assert (conformance.run(case, "cpu")["out"] == conformance.expected(case)["out"]).all(), case.name
print("same bits")
"""


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_engine_gives_the_references_bits(isa):
    if isa == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX2")
    environment = {**os.environ, "KERNELFORGE_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "same bits", done.stderr[-2000:]


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


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_model_shapes_become_machine_code_without_spills(variant, arch, tmp_path):
    from kernelforge_cuda import nvcc

    if nvcc.find() is None:
        pytest.skip("nvcc is not installed")
    backend = backends.backend("cuda")
    spec = conformance.kernels("cuda:virtual")[variant]
    lowered = lowering.lower(lowering.trace(spec.builder, dict(spec.parameters)), backend, arch)
    backend.build(lowered.source, lowered.info, arch, tmp_path)
    ptx = (tmp_path / nvcc.PTX).read_text()
    assert bool(re.search(r"(mma|wgmma)\S*\.s32\.s8\.s8", ptx)) == (variant in PRODUCTS)
    assert (tmp_path / nvcc.CUBIN).read_bytes()[:4] == b"\x7fELF"
    used = json.loads((tmp_path / nvcc.RESOURCES).read_text())["kernels"][lowered.info.entry]
    assert used["spill_store_bytes"] == used["spill_load_bytes"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_model_shapes_become_ascendc(variant):
    backend = backends.backend("ascend")
    spec = conformance.kernels("ascend:virtual")[variant]
    lowered = lowering.lower(
        lowering.trace(spec.builder, dict(spec.parameters)), backend, backend.default_arch("ascend:virtual")
    )
    assert ("ascend_gemm_l1" in lowered.source) == (variant in PRODUCTS)
