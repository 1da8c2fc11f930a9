"""The Ascend 950 itself: CANN's compiler and torch_npu, where they are installed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from kernelforge.backends.interface import CompileFailed, CompilerMissing, Tool

SOURCE, OBJECT = "kernel.cpp", "kernel.o"
_SECONDS = 600.0
_INSTALL = "install CANN with the Ascend 950 toolchain and set BISHENG_HOME, or put its bin folder on PATH"


def find() -> str | None:
    """Path of bisheng: ``$BISHENG_HOME/bin``, else the PATH."""
    home = os.environ.get("BISHENG_HOME")
    return shutil.which("bisheng", path=f"{home}/bin") if home else shutil.which("bisheng")


def tool() -> Tool:
    """The compiler, for ``kernelforge doctor``."""
    path = find()
    return Tool("bisheng", path is not None, path or f"not found; {_INSTALL}")


@functools.cache
def device() -> tuple[bool, str]:
    """Whether an Ascend 950 can be used, and what it is or what is missing."""
    if find_spec("torch_npu") is None:
        return False, "torch_npu is not installed; install kernelforge[ascend] on a machine with an Ascend 950"
    if find() is None:
        return False, f"bisheng is not found; {_INSTALL}"
    return False, "kernels are compiled for it; launching on the device goes through TileLang's own runtime"


def tilelang_headers() -> Path:
    """Where TileLang's Ascend templates are."""
    found = find_spec("tilelang")
    if found is None or found.origin is None:
        raise CompilerMissing("tilelang is not installed: its Ascend templates are needed to compile a kernel")
    return Path(found.origin).parent / "src"


def build(source: str, directory: Path, arch: str = "dav-3510") -> None:
    """Compile AscendC into a device object.

    Raises:
        CompilerMissing: CANN is not installed.
        CompileFailed: with the compiler's words.
    """
    compiler = find()
    (directory / SOURCE).write_text(source)
    if compiler is None:
        raise CompilerMissing(
            f"an Ascend 950 kernel needs bisheng, which is not found; {_INSTALL}. ascend:virtual runs without it"
        )
    command = [
        compiler,
        "-xasc",
        f"--npu-arch={arch}",
        "-O2",
        "-std=c++17",
        "-ffp-contract=off",
        f"-I{tilelang_headers()}",
        "-c",
        SOURCE,
        "-o",
        OBJECT,
    ]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise CompileFailed(f"bisheng did not finish within {_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise CompileFailed(f"bisheng rejected the generated code:\n{done.stderr[-4000:]}")
