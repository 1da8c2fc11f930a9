"""Virtual Ascend: generated AscendC compiled by g++ and executed on the host.

The kernel is compiled with headers of our own in place of CANN's and linked with a runtime that executes one cube
core and two vector cores per block: pipes, flags, memory spaces and fractal layouts as on the device, in an order
drawn from a seed. See ``csrc/virtual_ascend``.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernelforge.backends.interface import CompileFailed, CompilerMissing, Tool
from kernelforge.runtime.cache import default_root, digest_of_files

from .bisheng import tilelang_headers
from .marshal import MAX_BLOCKS, Memory

SCHEDULES = ("early", "late", "random")
KINDS = {"__mix__": 0, "__vector__": 1, "__cube__": 2}
_OPTIMIZED, _CHECKED = "-O2", "-O1"
"""With the checkers, kernels spend their time in calls at every load and store; -O1 compiles in a third to two thirds
of -O2's time."""
_FLAGS = ("-std=c++17", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-w")
_RUNTIME_FLAGS = ("-O3", "-std=c++17", "-ffp-contract=off", "-fwrapv", "-fPIC", "-pthread")
SANITIZERS = ("address", "thread")
"""What the executor can be tested with; the process must be started with the sanitizer's runtime."""
_TRACED = (
    "read_range",
    "write_range",
    *(f"{way}{size}" for way in ("read", "write", "unaligned_read", "unaligned_write") for size in (1, 2, 4, 8, 16)),
)
"""What checked kernels call at every load and store; see ``runtime/trace.cpp``."""
STEM, CHECKED_STEM = "virtual", "virtual_checked"
_COMPILE_SECONDS = 300.0
_ERROR_BYTES = 1 << 15
_SMALL = 1 << 20
"""Arrays up to this size are watched by the happens-before checker, like workspaces."""


class VirtualFault(RuntimeError):
    """The virtual device stopped the kernel; the message says where and why."""


@dataclass(frozen=True)
class Schedule:
    """In which order the pipes and cores of a block take their steps.

    Attributes:
        order: ``"early"`` (an operation happens as soon as it is issued and its waits are met), ``"late"`` (only when
            nothing else can go on) or ``"random"``.
        seed: decides every random choice, so that a run can be repeated.
        check: run the checkers: happens-before over every memory, unwritten memory, bounds of every load and store
            (the library must be built with ``checked=True``).
        threads: host threads over the blocks; 0 for one per CPU.
    """

    order: str = "late"
    seed: int = 0
    check: bool = False
    threads: int = 0


@dataclass(frozen=True)
class Signature:
    """The kernel function of a generated source."""

    name: str
    kind: int
    parameters: tuple[tuple[str, str], ...]
    """C type and name, in order."""


def signature(source: str) -> Signature:
    """Parse the kernel's signature.

    Raises:
        ValueError: the source holds no kernel.
    """
    found = re.search(r'extern "C" __global__ (__\w+__)(?:\([^)]*\))? void (\w+)\(([^)]*)\)', source)
    if found is None:
        raise ValueError("the source holds no Ascend kernel")
    parameters = []
    for parameter in filter(None, (p.strip() for p in found[3].split(","))):
        words = parameter.replace("__gm__", "").replace("__restrict__", "").split()
        parameters.append((" ".join(words[:-1]), words[-1]))
    return Signature(found[2], KINDS[found[1]], tuple(parameters))


def host_source(source: str) -> str:
    """The generated source with what the host needs: UB base addresses, and the entry behind it.

    UB starts at address 0 on the device and is dereferenced by vector functions, so these lines get the base of the
    running core's UB; every other memory space is only passed to ``asc_*`` calls, and keeps its addresses.
    """
    based = re.sub(r"\(__ubuf__ (\w+) \*\)0", r"(__ubuf__ \1 *)kf::ub_base()", source)
    return f"{based}\nKF_ENTRY({signature(source).name})\n"


def source_directory() -> Path:
    """Where the runtime and its headers are."""
    packaged = Path(__file__).parent / "virtual_ascend"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "csrc" / "virtual_ascend"


def tool() -> Tool:
    """The host compiler, for ``kernelforge doctor``."""
    try:
        return Tool("C++ compiler of ascend:virtual", True, _compiler())
    except CompilerMissing as error:
        return Tool("C++ compiler of ascend:virtual", False, str(error))


def device() -> tuple[bool, str]:
    """Whether the virtual device can run, and how or why not."""
    compiler = tool()
    if not compiler.found:
        return False, compiler.detail
    return True, f"one cube and two vector cores per block, executed on the CPU; {compiler.detail}"


def _compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise CompilerMissing("the virtual Ascend device needs a C++17 compiler: install g++, or set CXX")
    return found


def _run(command: Sequence[str], what: str, directory: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CompileFailed(f"compiling {what} took more than {_COMPILE_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise CompileFailed(f"{command[0]} could not compile {what}:\n{done.stderr[-4000:]}")


def _sanitizer_flags(sanitize: str | None) -> list[str]:
    if sanitize is None:
        return []
    if sanitize not in SANITIZERS:
        raise ValueError(f"sanitize is {sanitize!r}; use {' or '.join(map(repr, SANITIZERS))}, or None")
    return ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}"]


@functools.cache
def runtime_library(sanitize: str | None = None) -> Path:
    """The compiled runtime, kept in the user's cache directory under the hash of its sources and flags."""
    root = source_directory()
    compiler = _compiler()
    flags = [*_RUNTIME_FLAGS, *_sanitizer_flags(sanitize)]
    identity = f"{digest_of_files([root])}{compiler}{flags}"
    name = f"libkernelforge-virtual-ascend-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.so"
    path = default_root() / name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as private:
        sources = [str(source) for source in sorted((root / "runtime").glob("*.cpp"))]
        command = [compiler, *flags, f"-I{root / 'include'}", "-shared", f"-Wl,-soname,{name}", *sources]
        _run([*command, "-o", name, "-ldl"], "the virtual device", Path(private))
        os.replace(Path(private) / name, path)
    return path


def build(source: str, directory: Path | None = None, *, checked: bool = False, sanitize: str | None = None) -> Path:
    """Compile generated AscendC for the virtual device.

    Args:
        source: what TileLang generated, unchanged.
        directory: where the library goes; by default a new temporary directory, which is the caller's to remove.
        checked: instrument every load and store for the checkers.
        sanitize: test the executor itself: build it, and an unchecked kernel, for one of :data:`SANITIZERS`.

    Returns:
        The shared library.

    Raises:
        CompilerMissing, CompileFailed: with the compiler's words.
    """
    directory = Path(tempfile.mkdtemp(prefix="kernelforge-ascend-")) if directory is None else directory
    return _compile(host_source(source), directory, checked=checked, sanitize=sanitize)


def _compile(generated: str, directory: Path, *, checked: bool, sanitize: str | None = None) -> Path:
    stem = CHECKED_STEM if checked else STEM
    path = directory / f"{stem}.cpp"
    path.write_text(generated)
    compiler = _compiler()
    runtime = runtime_library(sanitize)
    include = [f"-I{source_directory() / 'include'}", f"-I{tilelang_headers()}"]
    # The sanitizer's instrumentation without its runtime: ours receives the accesses.
    instrument = [_CHECKED, "-fsanitize=thread", "-g1"] if checked else [_OPTIMIZED, *_sanitizer_flags(sanitize)]
    library = directory / f"{stem}.so"
    link = ["-shared", f"-L{runtime.parent}", f"-l:{runtime.name}", f"-Wl,-rpath,{runtime.parent}"]
    if sanitize and not checked:
        link.append(f"-fsanitize={sanitize}")
    elif sanitize == "thread":
        link += [f"-Wl,--wrap=__tsan_{name}" for name in _TRACED]
    kernel = directory / f"{stem}.o"
    _run([compiler, *_FLAGS, *instrument, *include, "-c", path.name, "-o", kernel.name], "the kernel", directory)
    _run([compiler, kernel.name, "-o", library.name, *link], "the kernel", directory)
    kernel.unlink()
    return library


_unchecked: dict[Path, tempfile.TemporaryDirectory[str]] = {}


def library(directory: Path, *, checked: bool) -> Path:
    """The library with checkers that :func:`build` left in ``directory``, or one without, compiled when first asked."""
    if checked:
        return directory / f"{CHECKED_STEM}.so"
    if directory not in _unchecked:
        private = tempfile.TemporaryDirectory(prefix="kernelforge-ascend-")
        _compile((directory / f"{CHECKED_STEM}.cpp").read_text(), Path(private.name), checked=False)
        _unchecked[directory] = private
    return Path(_unchecked[directory].name) / f"{STEM}.so"


class _Region(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("tracked", ctypes.c_int),
    ]


def launch(
    library: Path,
    arguments: Sequence[Any],
    grid: int,
    schedule: Schedule = Schedule(),
    *,
    kernel: Signature | None = None,
    workspaces: Sequence[str] = (),
    rounded: bool = False,
    sanitize: str | None = None,
) -> None:
    """Run a kernel on the virtual device.

    Args:
        library: what :func:`build` returned.
        arguments: in the order of the kernel function: NumPy arrays (C-contiguous) or :class:`Memory`, written in
            place, and integers.
        grid: number of blocks, at most 65535.
        schedule: the order of events, and whether the checkers run.
        kernel: the function's signature; read from the source beside the library by default.
        workspaces: names of array parameters that start as garbage and are watched.
        rounded: the cube unit's sums of bfloat16 products may round: in binary32, ascending along k. Without it only
            int8 is multiplied.
        sanitize: as the library was built.

    Raises:
        VirtualFault: a deadlock, a race, an access outside an argument or a memory, an unpaired flag.
        ValueError: the arguments do not fit the signature.
    """
    kernel = kernel or signature(library.with_suffix(".cpp").read_text())
    if len(arguments) != len(kernel.parameters):
        names = ", ".join(name for _, name in kernel.parameters)
        raise ValueError(f"{kernel.name} takes {len(kernel.parameters)} arguments ({names}), got {len(arguments)}")
    if not 0 <= grid <= MAX_BLOCKS:
        raise ValueError(f"a launch has at most {MAX_BLOCKS} blocks, got {grid}")
    if schedule.order not in SCHEDULES:
        raise ValueError(f"schedule order {schedule.order!r} is not one of {', '.join(SCHEDULES)}")
    if schedule.check and library.stem != CHECKED_STEM:
        raise ValueError("the checkers need a library built with checked=True")
    pointers = (ctypes.c_void_p * len(arguments))()
    regions: list[_Region] = []
    cells: list[Any] = []
    for position, (value, (ctype, name)) in enumerate(zip(arguments, kernel.parameters, strict=True)):
        cell: Any
        if ctype.endswith("*"):
            memory = _memory(value, f"argument {name} of {kernel.name}")
            cell = ctypes.c_void_p(memory.address)
            tracked = name in workspaces or memory.nbytes <= _SMALL
            regions.append(_Region(name.encode(), memory.address, memory.nbytes, int(tracked)))
        else:
            cell = (ctypes.c_int64 if "64" in ctype else ctypes.c_int32)(int(value))
        cells.append(cell)
        pointers[position] = ctypes.cast(ctypes.pointer(cell), ctypes.c_void_p)
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    runtime = _loaded(runtime_library(sanitize))
    failed = runtime.kf_launch(
        _loaded(library).kf_entry,
        pointers,
        (_Region * len(regions))(*regions),
        ctypes.c_int(len(regions)),
        ctypes.c_int(grid),
        ctypes.c_int(kernel.kind),
        ctypes.c_int(SCHEDULES.index(schedule.order)),
        ctypes.c_uint64(schedule.seed),
        ctypes.c_int(int(schedule.check)),
        ctypes.c_int(int(rounded)),
        ctypes.c_int(schedule.threads or len(os.sched_getaffinity(0))),
        error,
        ctypes.c_uint64(_ERROR_BYTES),
    )
    if failed:
        raise VirtualFault(_with_lines(error.value.decode(errors="replace"), library))


def _memory(value: Any, what: str) -> Memory:
    if isinstance(value, Memory):
        return value
    if not isinstance(value, np.ndarray) or not value.flags.c_contiguous:
        raise ValueError(f"{what} must be a C-contiguous array, got {type(value).__name__}")
    return Memory(value.ctypes.data, value.nbytes)


_libraries: dict[Path, ctypes.CDLL] = {}


def _loaded(library: Path) -> ctypes.CDLL:
    path = library.resolve()
    if path not in _libraries:
        _libraries[path] = ctypes.CDLL(str(path))
    return _libraries[path]


def _with_lines(text: str, library: Path) -> str:
    """The error with the generated lines it mentions."""
    source = library.with_suffix(".cpp")
    lines = source.read_text().splitlines() if source.is_file() else []
    code = re.search(r"\[code at \+(0x[0-9a-f]+)\]", text)
    if code is not None:
        text = text.replace(code[0], _line_of(int(code[1], 16) - 1, library))
    for number in dict.fromkeys(int(n) for n in re.findall(rf"{re.escape(source.name)}:(\d+)", text)):
        if 1 <= number <= len(lines):
            text += f"\n  {source.name}:{number}: {lines[number - 1].strip()}"
    return text


def _line_of(address: int, library: Path) -> str:
    tool = shutil.which("addr2line")
    if tool is None:
        return ""
    command = [tool, "-s", "-e", str(library), hex(address)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f" (code at {found.split(' ')[0]})" if found and "?" not in found else ""
