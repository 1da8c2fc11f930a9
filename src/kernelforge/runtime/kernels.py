"""From a kernel's specification to a callable: memory, then disk, then the compiler."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from importlib.metadata import version
from pathlib import Path

from .. import backends, contract
from ..backends import Backend, Executable, LaunchInfo
from . import workers
from .cache import digest_of_files, shared
from .compile import INFO, KernelSpec, compile_kernel

PACKAGE = Path(__file__).resolve().parent.parent


_executables: dict[tuple[KernelSpec, str, str], Executable] = {}


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
        compile_kernel(spec, backend, arch, directory)


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
