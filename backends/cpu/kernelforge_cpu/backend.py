"""The CPU as a kernelforge backend."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernelforge.backends import Backend, Capabilities, Device, Executable, LaunchInfo, Tool
from kernelforge.backends.capabilities import EXACT_DOT_BF16, EXACT_DOT_INT8, FP32_IEEE, INT32
from kernelforge.backends.interface import Pass

from . import compiler, schedules
from .executable import CpuExecutable


class CpuBackend(Backend):
    """Kernels as C++, compiled by the system compiler, blocks spread over threads."""

    name = "cpu"
    version = "1"
    tensor_device = "cpu"
    capabilities = Capabilities(
        frozenset({EXACT_DOT_INT8, EXACT_DOT_BF16, FP32_IEEE, INT32}), accumulator_bits={EXACT_DOT_BF16: 24}
    )
    composites = frozenset(
        {
            "attention_chunk",
            "cut_rows",
            "finished_entry",
            "indexer_scores",
            "known_mean",
            "mean_gradient",
            "mx_block_accumulate",
            "rows_dot_accumulate",
            "select_append",
            "select_reduce",
            "select_sort",
            "sliced_dot_accumulate",
            "weighted_mean",
        }
    )
    proving_passes = frozenset({"tl.LegalizeSafeMemoryAccess"})  # guards

    def devices(self) -> Sequence[Device]:
        return (Device("cpu", True, f"{platform.machine()}, {compiler.isa_summary()}"),)

    def tools(self) -> Sequence[Tool]:
        return (compiler.tool(),)

    def default_arch(self, device: str) -> str:
        return compiler.native_arch()

    def archs(self) -> Sequence[str]:
        return (compiler.native_arch(), *compiler.PORTABLE_ARCHS)

    def target(self, arch: str) -> Mapping[str, Any]:
        return {"kind": "c"}

    def passes(self, arch: str) -> Sequence[Pass]:
        from . import passes

        return passes.PIPELINE

    def pass_configs(self, arch: str, function: Any) -> Mapping[str, Any]:
        # The C printer spells vectors in a way that only OpenCL reads; the host compiler vectorizes by itself.
        return {"tirx.disable_vectorize": True}

    def build(self, source: str, info: LaunchInfo, arch: str, directory: Path) -> None:
        compiler.build(source, info, arch, directory)

    def load(self, directory: Path, info: LaunchInfo, device: str) -> Executable:
        return CpuExecutable(directory / compiler.LIBRARY, info)

    def tuning(self, op: str) -> Sequence[Mapping[str, Any]]:
        return schedules.rows(op)

    def digest_roots(self) -> Sequence[Path]:
        return (Path(__file__).parent, compiler.include_directory())
