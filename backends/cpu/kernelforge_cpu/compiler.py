"""The system C++ compiler: finding it, its flags, microkernel objects, and the wrapper around generated code."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from kernelforge.backends import CompileFailed, CompilerMissing, LaunchInfo, Tool
from kernelforge.runtime import cache

from . import assembly

LIBRARY = "kernel.so"
OBJECT = "microkernel.o"
ENTRY = "kf_run_blocks"
PORTABLE_ARCHS = (
    ("x86-64-v2", "x86-64-v3", "x86-64-v4") if platform.machine() in ("x86_64", "AMD64") else ("armv8.2-a",)
)
TIMEOUT = 600.0
# No contraction, no wrap-around or aliasing assumptions: generated code means what it says. Nothing reads the
# floating-point exception flags, so selects may be vectorized: -fno-trapping-math changes no bits.
EXACT_FLAGS = (
    *("-O3", "-std=c++17", "-fwrapv", "-fno-strict-aliasing"),
    *("-ffp-contract=off", "-fno-fast-math", "-fno-trapping-math"),
)
_DECLARATION = re.compile(r'#ifdef __cplusplus\nextern "C"\n#endif\n[\w ]+\*? kf_\w+\([^)]*\);\n')


def find() -> str | None:
    """Path of the C++ compiler: ``$CXX``, else the first of g++, clang++, c++."""
    for candidate in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(candidate) if candidate else None
        if path:
            return path
    return None


def tool() -> Tool:
    """The compiler as ``kernelforge doctor`` shows it."""
    path = find()
    if path is None:
        return Tool("C++ compiler", False, _MISSING)
    first = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    return Tool("C++ compiler", True, f"{path} ({first.splitlines()[0] if first else 'no version'})")


_MISSING = "no C++ compiler found: install g++ or clang++ (Debian: apt-get install g++), or set CXX to one"


@functools.cache
def _cpu_flags() -> tuple[str, ...]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return tuple(sorted(line.partition(":")[2].split()))
    return ()


def has_feature(name: str) -> bool:
    """Whether this CPU has what Linux calls ``name``."""
    return name in _cpu_flags()


@functools.cache
def native_arch() -> str:
    """A name for this CPU: caches shared between machines keep code for different CPUs apart."""
    features = hashlib.sha256(" ".join(_cpu_flags()).encode()).hexdigest()[:12]
    return f"native-{platform.machine()}-{features}"


def isa_summary() -> str:
    """The vector extensions that matter here."""
    known = ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "asimddp", "asimd")
    return " ".join(flag for flag in known if flag in _cpu_flags()) or "no vector extension found"


def include_directory() -> Path:
    """Where the microkernel headers are installed."""
    packaged = Path(__file__).parent / "include"
    checkout = Path(__file__).parents[3] / "csrc" / "cpu"  # an editable install
    return packaged if packaged.is_dir() else checkout


def build(source: str, info: LaunchInfo, arch: str, directory: Path) -> None:
    """Compile generated C into ``kernel.so``, with the objects of the microkernels it calls."""
    path = directory / "kernel.cpp"
    path.write_text(wrap(source, info))
    objects = [str(_microkernel(name, arch)) for name in microkernels(source)]
    what = f"the generated code of {info.entry}"
    made = _assembly(path.name, arch, directory, what)
    _compile(["-shared", made.name, *objects, "-o", LIBRARY], arch, directory, what)
    made.unlink()


def microkernels(source: str) -> list[str]:
    """Names of the microkernels that generated C calls: those that have a file under ``units/``."""
    names = {path.stem for path in (include_directory() / "units").glob("*.cpp")}
    return sorted(names & set(re.findall(r"\bkf_\w+", source)))


def _microkernel(name: str, arch: str) -> Path:
    """Object file of a microkernel, from the cache once it has been compiled for ``arch`` by this compiler."""
    unit = include_directory() / "units" / f"{name}.cpp"
    content = [_include_digest(), *EXACT_FLAGS, arch, *_compiler_version()]
    key = hashlib.sha256("\0".join(content).encode()).hexdigest()[:32]

    def compile_unit(directory: Path) -> None:
        what = f"the microkernel {name}"
        made = _assembly(str(unit), arch, directory, what, microkernel=True)
        _compile(["-c", made.name, "-o", OBJECT], arch, directory, what)
        made.unlink()

    return cache.shared.entry(f"{name}-cpu-{key}", compile_unit) / OBJECT


@functools.cache
def _include_digest() -> str:
    return cache.digest_of_files([include_directory()])


@functools.cache
def _compiler_version() -> tuple[str, str]:
    path = find() or ""
    if not path:
        raise CompilerMissing(_MISSING)
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    return path, shown


def _assembly(source: str, arch: str, directory: Path, what: str, microkernel: bool = False) -> Path:
    """Compile to assembly in which the compiler fused nothing by itself (see :mod:`.assembly`)."""
    path = directory / "kernel.s"
    found: list[str] = []
    for flags in assembly.CAREFUL:
        _compile(["-S", *flags, source, "-o", path.name], arch, directory, what)
        found = assembly.fused(path.read_text(), microkernel)
        if not found:
            return path
    shown = "\n  ".join(found[:8])
    raise CompileFailed(
        f"{find()} fuses multiplications and additions of {what}, which rounds once where the contract rounds twice, "
        f"even with {' '.join(assembly.CAREFUL[-1])}; set CXX to another compiler. Found:\n  {shown}"
    )


def _compile(arguments: list[str], arch: str, directory: Path, what: str) -> None:
    """Run the compiler in ``directory``; ``what`` is compiled, for the error."""
    compiler = find()
    if compiler is None:
        raise CompilerMissing(_MISSING)
    march = "native" if arch.startswith("native") else arch
    command = [compiler, *EXACT_FLAGS, f"-march={march}", "-fPIC", f"-I{include_directory()}", *arguments]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise CompileFailed(f"{compiler} did not finish {what} within {TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        raise CompileFailed(f"{compiler} rejected {what}:\n{done.stderr[-4000:]}")


def wrap(source: str, info: LaunchInfo) -> str:
    """Generated C with the microkernel header before it and the block-range wrapper behind it.

    Scratch tiles are disjoint and reached by their own parameter alone: ``__restrict__`` says so, or loops that store
    to one while they read many rows are not vectorized.
    """
    for workspace in info.workspaces:
        source = re.sub(rf"\* {workspace.name}\b", f"* __restrict__ {workspace.name}", source)
    arguments = {argument.name: i for i, argument in enumerate(info.arguments)}
    dtypes = {argument.name: argument.dtype for argument in info.arguments}
    extents = {name: i for i, name in enumerate(info.extents())}
    offsets, offset = {}, 0
    for workspace in info.workspaces:
        offsets[workspace.name] = (offset, workspace.dtype)
        offset += aligned(workspace.nbytes)
    values = []
    for parameter in info.parameters:
        if parameter.kind == "tensor":
            values.append(f"static_cast<{ctype(dtypes[parameter.name])}*>(tensors[{arguments[parameter.name]}])")
        elif parameter.kind == "extent":
            values.append(f"static_cast<int32_t>(extents[{extents[parameter.name]}])")
        elif parameter.kind == "workspace":
            start, dtype = offsets[parameter.name]
            values.append(f"reinterpret_cast<{ctype(dtype)}*>(workspace + {start})")
        elif parameter.kind == "block":
            values.append(f"static_cast<int32_t>({_BLOCK_INDEX[parameter.axis]})")
        else:
            raise CompileFailed(f"{info.entry}: the CPU has no parameter of kind {parameter.kind!r}")
    return _WRAPPER.format(
        kernel=_DECLARATION.sub("", source), entry=ENTRY, function=info.entry, arguments=", ".join(values)
    )


def workspace_bytes(info: LaunchInfo) -> int:
    """Scratch memory of one block."""
    return sum(aligned(workspace.nbytes) for workspace in info.workspaces)


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to a cache line."""
    return (nbytes + 63) // 64 * 64


def ctype(dtype: str) -> str:
    """C++ name of a TIR dtype."""
    return {"float32": "float", "float64": "double", "bool": "bool"}.get(dtype, f"{dtype}_t")


_BLOCK_INDEX = ("block % grid[0]", "block / grid[0] % grid[1]", "block / (grid[0] * grid[1])")
_WRAPPER = """#include "kernelforge_cpu.h"

static thread_local int32_t kf_failure = 0;
static inline int32_t kf_checked(int32_t code) {{
  if (code != 0) kf_failure = code;
  return code;
}}
static inline int64_t kf_index(int64_t index) {{ return index; }}

{kernel}
extern "C" int32_t {entry}(void* const* tensors, const int64_t* extents, const int64_t* grid, int64_t begin,
                           int64_t end, uint8_t* workspace) {{
  kf_failure = 0;
  for (int64_t block = begin; block < end; ++block) {{
    {function}({arguments});
    if (kf_failure != 0) return kf_failure;
  }}
  return 0;
}}
"""
