"""The indexer's kernels at DeepSeek-V4's shapes: on the matrix units, and nothing spills from registers."""

from __future__ import annotations

import json
import re

import pytest

from kernelforge import backends, lowering
from kernelforge.ops.lightning_indexer.conformance import kernels
from kernelforge.runtime import artifact

UNITS = {"sm_80": "mma.sync", "sm_90a": "wgmma.mma_async"}
MX_BLOCKS = {("mma.sync", "f32.bf16.bf16")}
"""FP4 scores on sm_90a are taken by the CUDA backend's device function."""


@pytest.mark.slow
@pytest.mark.parametrize("arch", UNITS)
@pytest.mark.parametrize("variant", sorted(kernels("cuda")))
def test_machine_code_uses_the_matrix_unit_and_does_not_spill(variant, arch):
    from kernelforge_cuda import nvcc

    directory, info = artifact(kernels("cuda")[variant], backends.backend("cuda"), arch)
    report = json.loads((nvcc.machine_code(directory, info, arch) / nvcc.RESOURCES).read_text())
    assert report["warnings"] == []
    for used in report["kernels"].values():
        assert 0 < used["registers"] <= 255
        assert used["spill_store_bytes"] == used["spill_load_bytes"] == used["stack_bytes"] == 0
    ptx = (directory / "kernel.ptx").read_text()
    products = set(re.findall(r"\b(mma\.sync|wgmma\.mma_async)\S*\.(s32\.s8\.s8|f32\.bf16\.bf16)", ptx))
    wanted = set() if variant.endswith("merge") else {(UNITS[arch], "s32.s8.s8")}
    if arch == "sm_90a" and not variant.endswith(("merge", "bf16")):
        # Gradients multiply what is no MX block too.
        wanted = MX_BLOCKS | (wanted if "gradient" in variant else set())
    assert products == wanted


@pytest.mark.parametrize(
    ("arch", "unit"), [("sm_80", "tl::mma_sync<tl::DataType::kInt8"), ("sm_90a", "kf::mx_block_accumulate")]
)
def test_all_products_of_the_scores_are_the_matrix_units(arch, unit):
    spec = kernels("cuda")["logits"]
    portable = lowering.trace(spec.builder, dict(spec.parameters))
    source = lowering.lower(portable, backends.backend("cuda"), arch).source
    assert set(re.findall(r"tl::\w*mma\w*<tl::DataType::\w+|kf::\w+(?=<)", source)) == {unit}


def test_all_products_of_the_scores_are_the_cube_units():
    spec, ascend = kernels("ascend:virtual")["logits"], backends.backend("ascend")
    portable = lowering.trace(spec.builder, dict(spec.parameters))
    assert "T.gemm(" in portable.script()
    source = lowering.lower(portable, ascend, ascend.archs()[0]).source
    assert set(re.findall(r"ascend_gemm_l1<[^>]*, (\w+)>", source)) == {"int8_t"}


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(kernels("ascend:virtual")))
def test_model_shapes_become_ascendc(variant):
    spec, ascend = kernels("ascend:virtual")[variant], backends.backend("ascend")
    source = lowering.lower(lowering.trace(spec.builder, dict(spec.parameters)), ascend, ascend.archs()[0]).source
    assert ("ascend_gemm_l1" in source) == (not variant.endswith("merge"))
