"""Every device that can run here, for tests that hold an op to its reference."""

from __future__ import annotations

import pytest

from kernelforge import backends


def available_devices() -> list[str]:
    """Devices that take CPU tensors, and so run the same test data."""
    return [
        device.name
        for backend in backends.backends().values()
        for device in backend.devices()
        if device.available and (device.virtual or backend.tensor_device == "cpu")
    ]


@pytest.fixture(params=available_devices())
def device(request: pytest.FixtureRequest) -> str:
    """A device name, for ``backend=``."""
    return request.param
