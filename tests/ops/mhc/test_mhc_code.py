"""Kernels of hyper-connections and of Sinkhorn at DeepSeek-V4's shapes compile for every target, without spills."""

from __future__ import annotations

import pytest
from machine_code import assert_no_spills, compile_tests, needs_nvcc

from kernelforge.ops.mhc import plans
from kernelforge.ops.sinkhorn import conformance as sinkhorn
from kernelforge.runtime import KernelSpec

CHANNELS = {"flash": 4096, "pro": 7168}


def kernels(device: str) -> dict[str, KernelSpec]:
    """Forward and backward; Sinkhorn is the same in both models."""
    found = {f"sinkhorn {name}": spec for name, spec in sinkhorn.kernels(device).items()}
    for model, channels in CHANNELS.items():
        for kind in ("block", "head"):
            problem = plans.Problem.example(device, head=kind == "head")._replace(C=channels)
            for name, spec in plans.specs(problem, plans.DEFAULTS).items():
                found[f"{model} {kind} {name}"] = spec
    return found


@needs_nvcc
@pytest.mark.parametrize("name", ["flash block pre", "flash block post", "flash block post_backward"])
def test_blocks_compile_for_hopper_without_spills(name):
    assert_no_spills(kernels("cuda")[name], "sm_90a")


test_every_kernel_compiles_for_cuda_without_spills, test_every_kernel_compiles_as_ascendc = compile_tests(kernels)
