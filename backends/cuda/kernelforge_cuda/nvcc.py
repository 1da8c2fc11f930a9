"""nvcc: finding it, its flags, and what becomes of a kernel's source: PTX, checked, then machine code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from kernelforge.backends import CompileFailed, CompilerMissing, LaunchInfo, Tool
from kernelforge.runtime import cache

SOURCE, PTX, CUBIN, RESOURCES = "kernel.cu", "kernel.ptx", "kernel.cubin", "resources.json"
TIMEOUT = 600.0
"""Seconds one compiler run may take."""

ARCHS = ("sm_80", "sm_90a", "sm_100a")
_SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90a": 227 * 1024, "sm_100a": 227 * 1024}
"""Most shared memory of one block (CUDA C++ Programming Guide, compute capabilities table)."""

# Every fp32 operation rounds on its own and keeps its subnormals; no option here is implied by another one's default.
EXACT_FLAGS = ("-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")

MISSING = (
    "nvcc was not found on PATH, in $CUDA_HOME/bin, nor in an nvidia-cuda-nvcc wheel: install the CUDA toolkit (12.4 "
    "or later) or `pip install 'kernelforge[cuda]'` (nvidia-cuda-nvcc, nvidia-cuda-cccl), or set CUDA_HOME to a toolkit"
)


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of one kernel.

    Attributes:
        registers: per thread.
        stack_bytes, spill_store_bytes, spill_load_bytes: local memory per thread; all 0 in a kernel that fits.
        shared_bytes: static shared memory per block.
        barriers: named barriers.
    """

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    barriers: int


def find() -> str | None:
    """Path of nvcc: on PATH, under ``$CUDA_HOME`` or ``$CUDA_PATH``, in NVIDIA's wheel, in /usr/local/cuda."""
    on_path = shutil.which("nvcc")
    if on_path:
        return on_path
    folders = [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += _wheel_folders()
    folders.append(Path("/usr/local/cuda/bin"))
    for folder in folders:
        found = shutil.which("nvcc", path=str(folder))
        if found:
            return found
    return None


def _wheel_folders() -> list[Path]:
    """``bin`` folders of NVIDIA's wheels, which share the namespace package ``nvidia``."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    return sorted(folder for root in roots for folder in root.glob("*/bin"))


def tool() -> Tool:
    """The compiler as ``kernelforge doctor`` shows it."""
    path = find()
    if path is None:
        return Tool("nvcc", False, MISSING)
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Tool("nvcc", False, f"{path} does not run: {error}")
    release = re.search(r"release ([\d.]+), V([\d.]+)", said)
    return Tool("nvcc", True, f"{path} ({release[2] if release else 'no version'})")


def version_file() -> Path | None:
    """``version.json`` of the toolkit in use, which names the version of every tool; part of cache keys."""
    path = find()
    if path is None:
        return None
    candidates = [Path(path).resolve().parent.parent / "version.json", Path("/usr/local/cuda/version.json")]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def include_flags() -> list[str]:
    """Where generated code finds ``kernelforge_cuda.h``, TileLang's templates and CUTLASS."""
    found = importlib.util.find_spec("tilelang")
    if found is None or found.origin is None:
        raise CompilerMissing(
            "tilelang is not installed: its headers are needed to compile a kernel (pip install tilelang)"
        )
    package = Path(found.origin).parent
    folders = (Path(__file__).parent, package / "src", package / "3rdparty" / "cutlass" / "include")
    return [f"-I{folder}" for folder in folders]


def arch_flags(arch: str, machine_code: bool) -> list[str]:
    """The target: PTX for ``arch``, or its machine code. Architecture-specific ones have no short spelling."""
    compute = arch.replace("sm_", "compute_")
    return [f"-gencode=arch={compute},code={arch if machine_code else compute}"]


def build(source: str, info: LaunchInfo, arch: str, directory: Path) -> None:
    """Write ``kernel.cu`` and ``kernel.ptx`` into ``directory``: all that the virtual device needs.

    Raises:
        CompilerMissing: there is no nvcc.
        CompileFailed: nvcc's words; or an instruction that exact arithmetic forbids; or a block that does not fit.
    """
    nvcc = _compiler(arch)
    _check_shared(info.shared_bytes, info, arch)
    (directory / SOURCE).write_text(source)
    to_ptx = ["-std=c++17", "-w", "-lineinfo", *EXACT_FLAGS, *arch_flags(arch, False), *include_flags()]
    _run(nvcc, [*to_ptx, "-ptx", SOURCE, "-o", PTX], info, directory)
    check((directory / PTX).read_text(), info)


def machine_code(built: Path, info: LaunchInfo, arch: str) -> Path:
    """The directory of ``kernel.cubin`` and ``resources.json`` for what :func:`build` made, in the kernel cache.

    Raises:
        CompilerMissing, CompileFailed: as :func:`assemble`.
    """
    ptx = (built / PTX).read_bytes()
    key = hashlib.sha256(b"\0".join([ptx, arch.encode(), _version().encode()])).hexdigest()[:32]
    return cache.shared.entry(f"machine_code-cuda-{key}", lambda directory: assemble(built, info, arch, directory))


def assemble(built: Path, info: LaunchInfo, arch: str, directory: Path) -> None:
    """Assemble the PTX that was checked in ``built``: ``kernel.cubin`` and ``resources.json`` in ``directory``.

    Raises:
        CompilerMissing: there is no nvcc.
        CompileFailed: ptxas's words; or a block that does not fit.
    """
    said = _run(
        _compiler(arch),
        ["-cubin", *arch_flags(arch, True), "-Xptxas", "-v", str(built.resolve() / PTX), "-o", CUBIN],
        info,
        directory,
    )
    resources = parse_resources(said)
    if info.entry not in resources:
        raise CompileFailed(f"ptxas reported nothing about {info.entry}:\n{said[-2000:]}")
    _check_shared(info.shared_bytes + resources[info.entry].shared_bytes, info, arch)
    report = {
        "arch": arch,
        "kernels": {name: asdict(resource) for name, resource in resources.items()},
        "warnings": [
            line for line in said.splitlines() if "warning" in line.lower() or "Potential Performance Loss" in line
        ],
    }
    (directory / RESOURCES).write_text(json.dumps(report, indent=1))


def _compiler(arch: str) -> str:
    if arch not in ARCHS:
        raise CompileFailed(f"arch is {arch!r}; the CUDA backend compiles for {', '.join(ARCHS)}")
    nvcc = find()
    if nvcc is None:
        raise CompilerMissing(MISSING)
    return nvcc


def _version() -> str:
    """What tells compilers apart in cache keys."""
    found = version_file()
    return found.read_text() if found else str(find())


def _run(nvcc: str, arguments: list[str], info: LaunchInfo, directory: Path) -> str:
    try:
        done = subprocess.run(
            [nvcc, *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            errors="replace",
        )
    except OSError as error:
        raise CompilerMissing(f"{nvcc} does not run ({error}); {MISSING}") from error
    except subprocess.TimeoutExpired as error:
        raise CompileFailed(f"{nvcc} did not finish {info.entry} within {TIMEOUT:.0f} s") from error
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise CompileFailed(f"{nvcc} rejected the generated code of {info.entry}:\n{said[-4000:]}")
    return said


def check(ptx: str, info: LaunchInfo) -> None:
    """Refuse PTX with an instruction that exact arithmetic forbids."""
    try:
        from .virtual.lint import lint
    except ImportError as error:
        raise CompilerMissing(f"kernelforge_cuda is not installed completely ({error}): reinstall it") from error
    findings = lint(ptx)
    if findings:
        listed = "\n".join(f"  {finding}" for finding in findings[:20])
        raise CompileFailed(
            f"{info.entry} was compiled to {len(findings)} instructions that exact arithmetic forbids; use the "
            f"functions of kernelforge.numerics in the kernel instead:\n{listed}"
        )


def _check_shared(needed: int, info: LaunchInfo, arch: str) -> None:
    if needed > _SHARED_LIMIT[arch]:
        raise CompileFailed(
            f"{info.entry} needs {needed} bytes of shared memory per block, {arch} has {_SHARED_LIMIT[arch]}; "
            "choose smaller blocks or fewer stages"
        )


_ENTRY = re.compile(r"Compiling entry function '([^']+)' for")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, used (\d+) barriers)?(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_resources(said: str) -> dict[str, Resources]:
    """Resources by kernel from what ``ptxas -v`` prints."""
    found: dict[str, Resources] = {}
    name, frame = "", (0, 0, 0)
    for line in said.splitlines():
        if entry := _ENTRY.search(line):
            name, frame = entry[1], (0, 0, 0)
        elif match := _FRAME.search(line):
            frame = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and name:
            shared = _SHARED.search(match[3])
            found[name] = Resources(int(match[1]), *frame, int(shared[1]) if shared else 0, int(match[2] or 0))
    return found
