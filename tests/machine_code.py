"""What compilers make of an op's kernels, for tests that hold the kernels to a device's registers and memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from kernelforge import backends
from kernelforge.runtime import KernelSpec, artifact

CUDA, ASCEND = backends.backend("cuda"), backends.backend("ascend")
CUDA_ARCHS = ("sm_80", "sm_90a")
UNIFIED_BUFFER = 248 * 1024
"""Bytes of a vector core's memory on Ascend 950."""

needs_nvcc = pytest.mark.skipif(not all(t.found for t in CUDA.tools() if "nvcc" in t.name), reason="no nvcc")


def assert_no_spills(spec: KernelSpec, arch: str) -> None:
    """Compile for a GPU: everything stays in registers and ptxas has nothing to say."""
    from kernelforge_cuda import nvcc

    directory, info = artifact(spec, CUDA, arch)
    report = json.loads((nvcc.machine_code(directory, info, arch) / nvcc.RESOURCES).read_text())
    used = report["kernels"][info.entry]
    assert 0 < used["registers"] <= 255
    assert used["spill_store_bytes"] == used["spill_load_bytes"] == used["stack_bytes"] == 0
    assert report["warnings"] == []


def assert_ascendc(spec: KernelSpec) -> None:
    """Lower to AscendC that a C++ compiler takes and whose tiles, if it has any, fit a vector core's memory."""
    _, info = artifact(spec, ASCEND, ASCEND.default_arch("ascend:virtual"))
    assert info.shared_bytes <= UNIFIED_BUFFER


def compile_tests(
    kernels: Callable[[str], Mapping[str, KernelSpec]],
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Tests that every kernel of ``kernels(backend)`` compiles: for CUDA without spills, and as AscendC."""

    @needs_nvcc
    @pytest.mark.slow
    @pytest.mark.parametrize("arch", CUDA_ARCHS)
    @pytest.mark.parametrize("name", sorted(kernels("cuda")))
    def for_cuda(name: str, arch: str) -> None:
        assert_no_spills(kernels("cuda")[name], arch)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", sorted(kernels("ascend")))
    def as_ascendc(name: str) -> None:
        assert_ascendc(kernels("ascend")[name])

    return for_cuda, as_ascendc
