"""The Ascend 950 itself: CANN's compiler and torch_npu, where they are installed."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kernelforge.backends import DeviceUnavailable, Tool
from kernelforge.backends.interface import CompileFailed, CompilerMissing

ARCH = "dav-3510"
SOURCE, BINARY = "kernel.asc", "kernel.aibin"
EXACT_OPTIONS = ("-ffp-contract=off",)
_INSTALL = "install CANN with the Ascend 950 toolchain and set BISHENG_HOME, or put its bin folder on PATH"


def find() -> str | None:
    """Path of bisheng: ``$BISHENG_HOME/bin``, else the PATH."""
    home = os.environ.get("BISHENG_HOME")
    return shutil.which("bisheng", path=f"{home}/bin" if home else None)


def tool() -> Tool:
    """The compiler, for ``kernelforge doctor``."""
    path = find()
    return Tool("bisheng", path is not None, path or f"not found; {_INSTALL}")


@functools.cache
def device() -> tuple[bool, str]:
    """Whether an Ascend 950 can be used, and what it is or what is missing."""
    try:
        npu = torch_npu().npu
    except DeviceUnavailable as error:
        return False, str(error)
    if not npu.is_available():
        return False, "torch_npu finds no NPU or driver"
    if find() is None:
        return False, f"bisheng is not found; {_INSTALL}"
    return True, f"{npu.get_device_name()}, kernels for {ARCH}"


def torch_npu() -> Any:
    """The module torch_npu.

    Raises:
        DeviceUnavailable: it is not installed or does not import.
    """
    if find_spec("torch_npu") is None:
        raise DeviceUnavailable(
            "torch_npu is not installed; install kernelforge[ascend] on a machine with an Ascend 950"
        )
    try:
        return importlib.import_module("torch_npu")
    except (ImportError, OSError) as error:
        raise DeviceUnavailable(f"torch_npu does not import: {error}") from error


def tilelang_headers() -> Path:
    """Where TileLang's Ascend templates are."""
    found = find_spec("tilelang")
    if found is None or found.origin is None:
        raise CompilerMissing("tilelang is not installed: its Ascend templates are needed to compile a kernel")
    return Path(found.origin).parent / "src"


def build(source: str, directory: Path) -> None:
    """Compile AscendC into the binary that CANN's runtime loads, the way TileLang does, without contraction.

    Raises:
        CompilerMissing: CANN is not installed.
        CompileFailed: with the compiler's words.
    """
    (directory / SOURCE).write_text(source)
    if find() is None:
        raise CompilerMissing(
            f"an Ascend 950 kernel needs bisheng, which is not found; {_INSTALL}. ascend:virtual needs only g++"
        )
    from tilelang.contrib.bisheng import compile_ascend

    options = [f"-I{tilelang_headers()}", *EXACT_OPTIONS]
    try:
        compile_ascend(source, "aibin", npu_arch=ARCH, options=options, path_target=directory / BINARY)
    except RuntimeError as error:
        raise CompileFailed(str(error)[:4000]) from error
