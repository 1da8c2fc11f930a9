"""NVIDIA CUDA as a kernelforge backend."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelforge.backends import (
    Backend,
    Capabilities,
    Device,
    DeviceUnavailable,
    Executable,
    LaunchInfo,
    Tool,
)
from kernelforge.backends.capabilities import EXACT_DOT_BF16, EXACT_DOT_INT8, FP32_IEEE, INT32
from kernelforge.backends.interface import Pass
from kernelforge.runtime import tuning

from . import nvcc

REAL, VIRTUAL = "cuda", "cuda:virtual"
VIRTUAL_ARCH = "KERNELFORGE_CUDA_VIRTUAL_ARCH"
VIRTUAL_ARCHS = ("sm_80", "sm_90a")
"""What the virtual device executes; the first is the default."""


class CudaBackend(Backend):
    """Kernels as CUDA C++, compiled by nvcc, run by a GPU or by the PTX executor."""

    name = "cuda"
    version = "1"
    tensor_device = "cuda"
    # bf16 products in fp32: the tensor cores of compute capability 8.x keep 24 bits, later ones 25.
    capabilities = Capabilities(
        frozenset({EXACT_DOT_INT8, EXACT_DOT_BF16, FP32_IEEE, INT32}), accumulator_bits={EXACT_DOT_BF16: 24}
    )
    composites = frozenset({"mx_block_accumulate"})
    # Guards, and barriers.
    proving_passes = frozenset({"tl.LegalizeSafeMemoryAccess", "tl.ThreadSync"})

    def devices(self) -> Sequence[Device]:
        available, detail = _real_device()
        executes, how = _virtual_device()
        return (Device(REAL, available, detail), Device(VIRTUAL, executes, how, virtual=True))

    def tools(self) -> Sequence[Tool]:
        return (nvcc.tool(),)

    def default_arch(self, device: str) -> str:
        return virtual_arch() if device == VIRTUAL else _arch_of_gpu()

    def archs(self) -> Sequence[str]:
        return nvcc.ARCHS

    def target(self, arch: str) -> Mapping[str, Any]:
        return {"kind": "cuda", "arch": arch}

    def passes(self, arch: str) -> Sequence[Pass]:
        from . import passes

        return passes.PIPELINE if arch == "sm_80" else passes.BF16_PIPELINE

    def pass_configs(self, arch: str, function: Any) -> Mapping[str, Any]:
        from .warp_specialization import specialization_is_safe

        return {
            "tl.enable_fast_math": False,
            "tl.disable_warp_specialized": not specialization_is_safe(function),
        }

    def source(self, lowered: Any) -> str:
        from .headers import with_own_headers
        from .proxies import with_proxy_fences

        return with_own_headers(with_proxy_fences(lowered.kernel_source))

    def finish(self, lowered: Any, info: LaunchInfo) -> LaunchInfo:
        from .finish import finish

        return finish(lowered, info)

    def build(self, source: str, info: LaunchInfo, arch: str, directory: Path) -> None:
        nvcc.build(source, info, arch, directory)

    def load(self, directory: Path, info: LaunchInfo, device: str) -> Executable:
        if device == VIRTUAL:
            from .virtual_launch import VirtualExecutable

            return VirtualExecutable((directory / nvcc.PTX).read_text(), info)
        from . import launch

        return launch.load(nvcc.machine_code(directory, info, _arch_of_gpu()), info)

    def tuning(self, op: str) -> Sequence[Mapping[str, Any]]:
        return tuning.packaged("kernelforge_cuda", op)

    def digest_roots(self) -> Sequence[Path]:
        version = nvcc.version_file()
        return (Path(__file__).parent, *((version,) if version else ()))


def arch_of_capability(major: int, minor: int) -> str:
    """The architecture compiled for a GPU of compute capability ``major.minor``.

    Raises:
        DeviceUnavailable: a generation that kernels are not compiled for.
    """
    arch = {8: "sm_80", 9: "sm_90a", 10: "sm_100a"}.get(major)
    if arch is None or (arch.endswith("a") and minor != 0):
        raise DeviceUnavailable(
            f"the GPU has compute capability {major}.{minor}; kernels are compiled for 8.x, 9.0 and 10.0"
        )
    return arch


def virtual_arch() -> str:
    """The architecture that the virtual device stands for: ``$KERNELFORGE_CUDA_VIRTUAL_ARCH``, by default sm_80."""
    arch = os.environ.get(VIRTUAL_ARCH, VIRTUAL_ARCHS[0])
    if arch not in VIRTUAL_ARCHS:
        raise DeviceUnavailable(f"{VIRTUAL_ARCH} is {arch!r}; the virtual device executes {' or '.join(VIRTUAL_ARCHS)}")
    return arch


@functools.cache
def _arch_of_gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise DeviceUnavailable(f"device 'cuda' cannot run here: {_real_device()[1]}")
    return arch_of_capability(*torch.cuda.get_device_capability())


def _real_device() -> tuple[bool, str]:
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        try:
            arch = arch_of_capability(major, minor)
        except DeviceUnavailable as error:
            return False, str(error)
        return True, f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, kernels for {arch}"
    if torch.version.cuda is None:
        return (
            False,
            f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch to use a GPU",
        )
    return False, f"torch {torch.__version__} finds no NVIDIA GPU or driver"


def _virtual_device() -> tuple[bool, str]:
    import importlib.util

    if importlib.util.find_spec("kernelforge_cuda._virtual") is None:
        return (
            False,
            "the extension kernelforge_cuda._virtual is not built: reinstall kernelforge with a C++ compiler",
        )
    compiler = nvcc.find()  # not asked for its version: a process whose kernels are cached starts no compiler
    if compiler is None:
        return False, nvcc.MISSING
    try:
        return True, f"PTX for {virtual_arch()} executed on the CPU; {compiler}"
    except DeviceUnavailable as error:
        return False, str(error)
