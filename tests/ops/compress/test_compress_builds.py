"""Kernels of compression and of the output projection at DeepSeek-V4's shapes compile for every target, no spills."""

from __future__ import annotations

import pytest
from machine_code import CUDA_ARCHS, assert_ascendc, assert_no_spills, needs_nvcc

from kernelforge.ops.compress import conformance as compress
from kernelforge.ops.grouped_projection import conformance as projection
from kernelforge.runtime import KernelSpec


def kernels(device: str) -> dict[str, KernelSpec]:
    return {
        f"{op} {name}": spec
        for op, of_op in (("compress", compress), ("projection", projection))
        for name, spec in of_op.kernels(device).items()
    }


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", CUDA_ARCHS)
@pytest.mark.parametrize("name", sorted(kernels("cuda")))
def test_every_kernel_compiles_for_cuda_without_spills(name, arch):
    assert_no_spills(kernels("cuda")[name], arch)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(kernels("ascend")))
def test_every_kernel_compiles_as_ascendc(name):
    assert_ascendc(kernels("ascend")[name])
