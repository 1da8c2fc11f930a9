"""Huawei Ascend 950 as a kernelforge backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kernelforge.backends import Backend, Capabilities, Device, Executable, LaunchInfo, Tool
from kernelforge.backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from kernelforge.backends.interface import Pass
from kernelforge.runtime import tuning

from . import bisheng, virtual

REAL, VIRTUAL = "ascend", "ascend:virtual"
ARCH, VIRTUAL_ARCH = bisheng.ARCH, f"{bisheng.ARCH}-virtual"


class AscendBackend(Backend):
    """Kernels as AscendC, compiled by bisheng for an Ascend 950 or by g++ for the virtual device."""

    name = "ascend"
    version = "1"
    tensor_device = "npu"
    capabilities = Capabilities(frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32}), subnormals=False)
    proving_passes = frozenset(
        {
            "tl.LegalizeNegativeIndex",
            "tl.AscendInsertOOBPadding",
            "tl.AutoSchedule",
            "tl.InsertSync",
            "tl.LegalizeSafeMemoryAccess",
            "tl.AscendThreadSync",
        }
    )

    def devices(self) -> Sequence[Device]:
        available, detail = bisheng.device()
        executes, how = virtual.device()
        return (Device(REAL, available, detail), Device(VIRTUAL, executes, how, virtual=True))

    def tools(self) -> Sequence[Tool]:
        return (bisheng.tool(), virtual.tool())

    def default_arch(self, device: str) -> str:
        return VIRTUAL_ARCH if device == VIRTUAL else ARCH

    def archs(self) -> Sequence[str]:
        return (ARCH, VIRTUAL_ARCH)

    def target(self, arch: str) -> Mapping[str, Any]:
        return {"kind": "ascend"}

    def passes(self, arch: str) -> Sequence[Pass]:
        from . import passes

        return passes.PIPELINE

    def pass_configs(self, arch: str, function: Any) -> Mapping[str, Any]:
        from .passes.persistent_grid import is_persistent

        return {"tl.disable_shared_memory_reuse": True} if is_persistent(function) else {}

    def finish(self, lowered: Any, info: LaunchInfo) -> LaunchInfo:
        from .passes.gemm_to_cube import SLOTS
        from .passes.persistent_grid import launched_cores

        one_slot = tuple(replace(w, shape=(w.shape[0] // SLOTS, *w.shape[1:])) for w in info.workspaces)
        (device,) = (function for _, function in lowered.device_mod.functions.items())
        cores = launched_cores(device.body)
        return replace(
            info,
            workspaces=one_slot,
            shared_bytes=int(device.attrs.get("dyn_shared_memory_buf", 0)),
            extra={**info.extra, **({} if cores is None else {"cores": cores})},
        )

    def build(self, source: str, info: LaunchInfo, arch: str, directory: Path) -> None:
        if arch == VIRTUAL_ARCH:
            virtual.build(source, directory, checked=True)
        else:
            bisheng.build(source, directory)

    def load(self, directory: Path, info: LaunchInfo, device: str) -> Executable:
        if device == VIRTUAL:
            from .virtual_executable import VirtualExecutable

            return VirtualExecutable(directory, info)
        from . import npu_executable

        return npu_executable.load(directory, info)

    def tuning(self, op: str) -> Sequence[Mapping[str, Any]]:
        return tuning.packaged("kernelforge_ascend", op)

    def digest_roots(self) -> Sequence[Path]:
        return (Path(__file__).parent, virtual.source_directory())
