"""The kernels of DeepSeek-V4's layers, forward and backward, compile for every target, without spills."""

from __future__ import annotations

import pytest
from machine_code import assert_no_spills, compile_tests, needs_nvcc

from kernelforge.ops.mega_moe import conformance as moe
from kernelforge.ops.mega_moe.local import NEEDS
from kernelforge.ops.route_topk import conformance as route
from kernelforge.ops.sliced_gemm.op import KERNELS as PRODUCTS
from kernelforge.runtime import KernelSpec, schedule

MODELS = {"flash": moe.FLASH, "pro": moe.PRO}


def kernels(device: str) -> dict[str, KernelSpec]:
    """Of both models; the router's are the same in both but for the number of experts."""
    found = {f"route {name}": spec for name, spec in route.kernels(device).items()}
    for model, extents in MODELS.items():
        of_layer = {**moe.layer_kernels(device, **extents), **_products(device, extents["hidden"], extents["inter"])}
        found |= {f"{model} {name}": spec for name, spec in of_layer.items()}
    return found


def _products(device: str, hidden: int, inter: int) -> dict[str, KernelSpec]:
    """Of the backward pass: an expert's rows with its weights, and over its rows."""
    of_bf16 = {"groups": 1, "a_dtype": "bfloat16", "b_dtype": "bfloat16", "out_dtype": "float32"}
    problems = {
        "to inter": ("sliced_gemm", {"K": hidden, "N": inter, "turned": True, "whole": False}),
        "to hidden": ("sliced_gemm", {"K": 2 * inter, "N": hidden, "turned": True, "whole": False}),
        "w1's gradient": ("sliced_gemm_over_rows", {"M": 2 * inter, "N": hidden}),
        "w2's gradient": ("sliced_gemm_over_rows", {"M": hidden, "N": inter}),
    }
    return {
        name: KernelSpec.of(
            f"{PRODUCTS}:{kernel}",
            NEEDS,
            **of_bf16,
            **extents,
            **schedule("sliced_gemm", device, kernel=kernel, tokens=256, **of_bf16, **extents),
        )
        for name, (kernel, extents) in problems.items()
    }


@needs_nvcc
@pytest.mark.parametrize("name", ["flash linear1", "flash linear2"])
def test_products_compile_for_hopper_without_spills(name):
    assert_no_spills(kernels("cuda")[name], "sm_90a")


test_every_kernel_compiles_for_cuda_without_spills, test_every_kernel_compiles_as_ascendc = compile_tests(kernels)
