"""CUDA C++ to PTX with nvcc; no GPU is needed."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence

from ..nvcc import include_flags


def compile_ptx(
    source: str, arch: str, *, includes: Sequence[pathlib.Path] | None = None, flags: Sequence[str] = ("-fmad=false",)
) -> str:
    """Compiles CUDA C++ to PTX.

    Args:
        source: CUDA C++ text.
        arch: "sm_80", "sm_90a", ...
        includes: include folders; those of generated code by default.
        flags: further nvcc flags. The default keeps nvcc from contracting a*b+c, as exact mode wants.

    Raises:
        RuntimeError: nvcc is missing or refuses the source; the message holds its output.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not on PATH; install the CUDA toolkit's compiler (no GPU is needed) to make PTX")
    number = arch.removeprefix("sm_")
    folders = include_flags() if includes is None else [f"-I{path}" for path in includes]
    with tempfile.TemporaryDirectory(prefix="kernelforge-ptx-") as folder:
        (pathlib.Path(folder) / "kernel.cu").write_text(source)
        command = [
            nvcc,
            "-w",
            "-std=c++17",
            f"-gencode=arch=compute_{number},code=compute_{number}",
            "-lineinfo",
            "-ptx",
            *flags,
            *folders,
            "kernel.cu",
            "-o",
            "kernel.ptx",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc refused the source for {arch}:\n{done.stderr[-4000:]}")
        return (pathlib.Path(folder) / "kernel.ptx").read_text()
