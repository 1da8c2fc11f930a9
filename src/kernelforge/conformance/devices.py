"""Which devices a list of backends means here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import backends
from ..backends import Device, DeviceUnavailable


@dataclass(frozen=True)
class Chosen:
    """Devices to run on, and what cannot run.

    Attributes:
        devices: device names, in the order asked for.
        absent: (device, reason): not here, while its backend has another device that is.
        missing: (name, reason): asked for, and nothing of it can run here.
    """

    devices: tuple[str, ...]
    absent: tuple[tuple[str, str], ...] = ()
    missing: tuple[tuple[str, str], ...] = ()


def choose(names: Sequence[str] | None = None) -> Chosen:
    """A backend stands for its real device, if it is here, and its virtual one; ``"cuda:virtual"`` for itself.

    Args:
        names: backends or devices; None for every installed backend.
    """
    devices: list[str] = []
    absent: list[tuple[str, str]] = []
    missing: list[tuple[str, str]] = []
    asked = list(backends.backends()) if names is None else list(dict.fromkeys(names))
    for name in asked:
        try:
            found = _devices(name)
        except DeviceUnavailable as error:
            missing.append((name, str(error)))
            continue
        here = [device for device in found if device.available]
        gone = [(device.name, device.detail) for device in found if not device.available]
        devices += [device.name for device in here if device.name not in devices]
        if here or names is None:
            absent += gone
        else:
            missing.append((name, "; ".join(f"{device}: {reason}" for device, reason in gone)))
    return Chosen(tuple(devices), tuple(absent), tuple(missing))


def _devices(name: str) -> list[Device]:
    owner = backends.backend(name.partition(":")[0])
    found = [device for device in owner.devices() if name in (owner.name, device.name)]
    if not found:
        known = ", ".join(device.name for device in owner.devices())
        raise DeviceUnavailable(f"backend {owner.name!r} has no device {name!r}; it has {known}")
    return found
