"""The kernels of a DeepSeek-V4-Flash layer compile for every target, without spills."""

from __future__ import annotations

import json

import pytest

from kernelforge import backends
from kernelforge.lowering import lower, trace
from kernelforge.ops.mega_moe import conformance as moe
from kernelforge.ops.route_topk import conformance as route

CUDA = backends.backend("cuda")
needs_nvcc = pytest.mark.skipif(not all(tool.found for tool in CUDA.tools() if "nvcc" in tool.name), reason="no nvcc")


def kernels(device: str) -> dict:
    return {**moe.kernels(device), **{f"route-{name}": spec for name, spec in route.kernels(device).items()}}


def compiles(name: str, arch: str, directory) -> None:
    spec = kernels("cuda")[name]
    lowered = lower(trace(spec.builder, dict(spec.parameters)), CUDA, arch)
    CUDA.build(lowered.source, lowered.info, arch, directory)
    (report,) = (json.loads(path.read_text()) for path in directory.glob("*.json"))
    used = report["kernels"][lowered.info.entry]
    assert used["spill_store_bytes"] == used["spill_load_bytes"] == used["stack_bytes"] == 0
    assert report["warnings"] == []


@needs_nvcc
@pytest.mark.parametrize("name", ["linear1", "linear2"])
def test_products_compile_for_hopper_without_spills(name, tmp_path):
    compiles(name, "sm_90a", tmp_path)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", sorted(kernels("cuda")))
def test_every_kernel_compiles_for_cuda_without_spills(name, arch, tmp_path):
    compiles(name, arch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(kernels("ascend")))
def test_every_kernel_becomes_ascendc(name):
    spec = kernels("ascend")[name]
    lowered = lower(trace(spec.builder, dict(spec.parameters)), backends.backend("ascend"), "dav-3510")
    assert lowered.info.entry in lowered.source
