"""Kernels of compression and of the output projection at DeepSeek-V4's shapes compile for every target, no spills."""

from __future__ import annotations

from machine_code import compile_tests

from kernelforge.ops.compress import conformance as compress
from kernelforge.ops.grouped_projection import conformance as projection
from kernelforge.runtime import KernelSpec


def kernels(device: str) -> dict[str, KernelSpec]:
    return {
        f"{op} {name}": spec
        for op, of_op in (("compress", compress), ("projection", projection))
        for name, spec in of_op.kernels(device).items()
    }


test_every_kernel_compiles_for_cuda_without_spills, test_every_kernel_compiles_as_ascendc = compile_tests(kernels)
