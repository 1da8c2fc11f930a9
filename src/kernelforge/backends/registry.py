"""Backends found by entry points; a broken one is reported, never imported into failure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from .interface import Backend, Device, DeviceUnavailable

GROUP = "kernelforge.backends"


@dataclass(frozen=True)
class Broken:
    """A plug-in that could not be loaded."""

    name: str
    value: str
    reason: str


@cache
def _discover() -> tuple[dict[str, Backend], tuple[Broken, ...]]:
    found: dict[str, Backend] = {}
    broken: list[Broken] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        try:
            backend = entry.load()()
            if not isinstance(backend, Backend):
                raise TypeError(f"{entry.value} made a {type(backend).__name__}, not a kernelforge Backend")
            if backend.name != entry.name:
                raise ValueError(f"the entry point is called {entry.name!r}, the backend {backend.name!r}")
            if backend.name in found:
                raise ValueError(f"a backend called {backend.name!r} is already registered")
        except Exception as error:  # a vendor's plug-in may fail in any way; doctor shows it
            broken.append(Broken(entry.name, entry.value, f"{type(error).__name__}: {error}"))
        else:
            found[backend.name] = backend
    return found, tuple(broken)


def backends() -> dict[str, Backend]:
    """Every backend that loads, by name."""
    return _discover()[0]


def broken() -> tuple[Broken, ...]:
    """Plug-ins that do not load, and why."""
    return _discover()[1]


def backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        DeviceUnavailable: there is none, or its plug-in does not load.
    """
    found = backends()
    if name in found:
        return found[name]
    for plug_in in broken():
        if plug_in.name == name:
            raise DeviceUnavailable(f"backend {name!r} ({plug_in.value}) does not load: {plug_in.reason}")
    raise DeviceUnavailable(f"backend {name!r} is not installed; installed are {sorted(found)}")


@cache
def device(name: str) -> tuple[Backend, Device]:
    """Resolve ``"cpu"``, ``"cuda"``, ``"cuda:virtual"`` ... to a backend and one of its devices.

    Raises:
        DeviceUnavailable: no such backend or device, or it cannot run here; the message says what to do.
    """
    owner = backend(name.split(":")[0])
    for candidate in owner.devices():
        if candidate.name == name:
            if not candidate.available:
                raise DeviceUnavailable(f"device {name!r} cannot run here: {candidate.detail}")
            return owner, candidate
    names = [candidate.name for candidate in owner.devices()]
    raise DeviceUnavailable(f"backend {owner.name!r} has no device {name!r}; it has {names}")


@cache
def device_for_tensor(tensor_device: str) -> str:
    """The device name that serves torch tensors of device type ``tensor_device``."""
    for candidate in backends().values():
        if candidate.tensor_device == tensor_device:
            return next(d.name for d in candidate.devices() if not d.virtual)
    raise DeviceUnavailable(
        f"no installed backend serves torch device {tensor_device!r}; installed are {sorted(backends())}"
    )
