"""The CPU microkernels, compiled for this machine and for an emulated one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from microkernel_libraries import MISSING_EMULATOR, Emulated, Host, Library


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("microkernels"))


@pytest.fixture(scope="session", params=["host", pytest.param("aarch64", marks=pytest.mark.slow)])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    if request.param == "host":
        yield request.getfixturevalue("host")
        return
    if Emulated.missing():
        pytest.skip(MISSING_EMULATOR)
    emulated = Emulated(tmp_path_factory.mktemp("aarch64"))
    yield emulated
    emulated.close()
