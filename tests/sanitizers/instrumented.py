"""The executors compiled for a sanitizer, and the environment that a process with them needs.

Only the executors are instrumented. The sanitizer's runtime is preloaded into an ordinary interpreter, so nothing that
such a process starts may inherit it: compilers crash under it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).parents[2]
VIRTUAL_CUDA = ROOT / "csrc" / "virtual_cuda"
BUILD = ROOT / "build" / "sanitize"
KINDS = ("address", "thread")
_COMPILER = "g++"
_LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
_OPTIONS = {
    # Python never frees what it keeps until it exits. Frames of functions that returned stay poisoned.
    "address": ("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=1:exitcode=99"),
    "thread": ("TSAN_OPTIONS", "halt_on_error=0:second_deadlock_stack=1:exitcode=99"),
}
REPORTS = ("ERROR: AddressSanitizer", "WARNING: AddressSanitizer", "AddressSanitizer:", "ThreadSanitizer:")
_FLAGS = ("-O1", "-g", "-fno-omit-frame-pointer", "-std=c++17", "-ffp-contract=off", "-fvisibility=hidden", "-fPIC")


def library(name: str) -> Path | None:
    """A library of the compiler by file name; ``None`` where it is not installed."""
    found = subprocess.run([_COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=False).stdout
    path = Path(found.strip())
    return path.resolve() if path.is_absolute() else None


def missing(kind: str) -> str | None:
    """Why processes of this kind cannot run here, or ``None``."""
    try:
        return None if library(_LIBRARIES[kind]) else f"{_LIBRARIES[kind]} of {_COMPILER} is not installed"
    except OSError:
        return f"{_COMPILER} is not installed"


def environment(kind: str) -> dict[str, str]:
    """What a process that loads instrumented code must be started with.

    The C++ library comes with the sanitizer's: it is looked up for its exceptions before Python loads an extension.
    """
    preload = [str(found) for name in (_LIBRARIES[kind], "libstdc++.so") if (found := library(name))]
    name, value = _OPTIONS[kind]
    single = {variable: "1" for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    path = [str(ROOT / folder) for folder in ("src", "backends/cuda", "backends/ascend")]
    return {
        **os.environ,
        **single,
        "LD_PRELOAD": " ".join(preload),
        name: value,
        "PYTHONPATH": os.pathsep.join(path),
        "KERNELFORGE_CACHE": str(BUILD / "cache"),
    }


def virtual_cuda(kind: str, sources: Path = VIRTUAL_CUDA) -> Path:
    """The instrumented module ``_virtual``, under ``build/sanitize/``; unchanged sources are not compiled again.

    Args:
        kind: ``"address"`` or ``"thread"``.
        sources: folder of the executor.

    Raises:
        RuntimeError: the compiler refuses a source.
    """
    flags = [*_FLAGS, f"-fsanitize={kind}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    headers = hashlib.sha256("\0".join([*flags, sys.version]).encode())
    for header in sorted(sources.glob("*.h")):
        headers.update(header.read_bytes())
    folder = BUILD / kind
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        key = headers.copy()
        key.update(source.read_bytes())
        return _made(folder / f"{source.stem}-{key.hexdigest()[:16]}.o", [*flags, "-c", str(source)])

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compiled, sorted(sources.glob("*.cpp"))))
    key = hashlib.sha256("\0".join(made.name for made in objects).encode()).hexdigest()[:16]
    link = ["-shared", "-pthread", f"-fsanitize={kind}", *map(str, objects)]
    return _made(folder / f"_virtual-{key}.so", link)


def _made(path: Path, arguments: list[str]) -> Path:
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as private:
        made = Path(private) / path.name
        done = subprocess.run(
            [_COMPILER, *arguments, "-o", str(made)], capture_output=True, text=True, check=False, cwd=private
        )
        if done.returncode != 0:
            raise RuntimeError(f"{_COMPILER} could not make {path.name}:\n{done.stderr[-4000:]}")
        os.replace(made, path)
    return path
