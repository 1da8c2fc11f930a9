"""From a kernel's specification to a callable: memory, then disk, then the compiler."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import backends, contract
from ..backends import Backend, Executable, LaunchInfo
from . import workers
from .cache import digest_of_files, shared

PACKAGE = Path(__file__).resolve().parent.parent
INFO = "launch.json"
SOURCE = "source.txt"


@dataclass(frozen=True)
class KernelSpec:
    """A kernel before it is compiled.

    Attributes:
        builder: ``"package.module:function"`` that traces it (imported only to compile).
        parameters: the builder's keyword arguments, sorted by name.
        needs: capabilities the backend must claim.
    """

    builder: str
    parameters: tuple[tuple[str, Any], ...]
    needs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, builder: str, needs: frozenset[str] = frozenset(), **parameters: Any) -> KernelSpec:
        return cls(builder, tuple(sorted(parameters.items())), needs)

    @property
    def name(self) -> str:
        return self.builder.rpartition(":")[2]


_executables: dict[tuple[KernelSpec, str, str], Executable] = {}
_lowering = threading.Lock()
"""TileLang lowers one kernel at a time; the compilers behind it run side by side."""


def executable(spec: KernelSpec, device: str) -> Executable:
    """The loaded kernel for a device, compiled on first use.

    Raises:
        DeviceUnavailable, CapabilityError, NotPortable, CompilerMissing, CompileFailed, CacheError.
    """
    backend, _ = backends.device(device)
    arch = backend.default_arch(device)
    found = _executables.get((spec, device, arch))
    if found is None:
        directory, info = artifact(spec, backend, arch)
        found = _executables.setdefault((spec, device, arch), backend.load(directory, info, device))
    return found


def artifact(spec: KernelSpec, backend: Backend, arch: str) -> tuple[Path, LaunchInfo]:
    """The compiled files of a kernel and how to launch them, from the disk cache if they are there."""
    backend.capabilities.require(spec.name, spec.needs, backend.name)
    directory = shared.entry(_key(spec, backend, arch), lambda target: _compile(spec, backend, arch, target))
    return directory, LaunchInfo.from_json(json.loads((directory / INFO).read_text()))


def _compile(spec: KernelSpec, backend: Backend, arch: str, directory: Path) -> None:
    others = workers.current()
    if others is None or not others.compile(spec, backend.name, arch, directory):
        compile_here(spec, backend, arch, directory)


def compile_here(spec: KernelSpec, backend: Backend, arch: str, directory: Path) -> None:
    """Compile a kernel in this process into an empty directory."""
    with _lowering:
        from .. import lowering  # imports TileLang

        lowered = lowering.lower(lowering.trace(spec.builder, dict(spec.parameters)), backend, arch)
    (directory / SOURCE).write_text(lowered.source)
    (directory / INFO).write_text(json.dumps(lowered.info.to_json(), indent=1))
    backend.build(lowered.source, lowered.info, arch, directory)


def _key(spec: KernelSpec, backend: Backend, arch: str) -> str:
    content = {
        "contract": contract.VERSION,
        "tilelang": _tilelang_version(),
        "builder": spec.builder,
        "parameters": spec.parameters,
        "backend": [backend.name, backend.version, _backend_digest(backend)],
        "arch": arch,
        "sources": _package_digest(),
        "op": _op_digest(spec.builder.partition(":")[0]),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{spec.name}-{backend.name}-{digest[:32]}"


@functools.cache
def _tilelang_version() -> str:
    return version("tilelang")


@functools.cache
def _package_digest() -> str:
    """What decides generated code besides the op's own folder and the backend."""
    return digest_of_files([PACKAGE / part for part in ("backends", "formats", "lowering", "numerics")])


@functools.cache
def _op_digest(module: str) -> str:
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"kernel module {module} has no source file")
    # Ops share macros by their tile.py.
    return digest_of_files([Path(found.origin).parent, *sorted(PACKAGE.glob("ops/*/tile.py"))])


@functools.cache
def _backend_digest(backend: Backend) -> str:
    return digest_of_files(list(backend.digest_roots()))
