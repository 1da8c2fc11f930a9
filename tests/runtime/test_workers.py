"""Kernels compiled in other processes are the kernels compiled here, and fail the same way."""

from __future__ import annotations

import os
import signal

import pytest

from kernelforge import backends
from kernelforge.runtime import KernelSpec, compile, kernels, workers
from kernelforge.runtime.cache import Cache

KERNEL = KernelSpec.of("kernelforge.ops.compress.kernel_backward:sum_of_parts", D=32, block_C=32, threads=32)


@pytest.fixture
def cpu(tmp_path, monkeypatch):
    """Backend and architecture; kernels go to a cache of the test's own."""
    monkeypatch.setattr(kernels, "shared", Cache(tmp_path / "cache"))
    backend, _ = backends.device("cpu")
    return backend, backend.default_arch("cpu")


def _pids() -> list[int]:
    found = workers.current()
    assert found is not None
    return [process.pid for process in found._started]


def _not_here(*_):
    raise AssertionError("compiled in this process")


def test_a_worker_makes_the_code_that_this_process_makes(cpu, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    compile.compile_kernel(KERNEL, *cpu, here)
    monkeypatch.setattr(kernels, "compile_kernel", _not_here)
    with workers.compiling(1):
        there, _ = kernels.artifact(KERNEL, *cpu)
        assert len(_pids()) == 1
    assert workers.current() is None
    assert (there / compile.SOURCE).read_text() == (here / compile.SOURCE).read_text()
    assert (there / compile.INFO).read_text() == (here / compile.INFO).read_text()
    assert {path.name for path in here.iterdir()} < {path.name for path in there.iterdir()}  # and a manifest


def test_a_kernel_that_cannot_be_compiled_raises_its_own_error(cpu):
    wrong = KernelSpec.of("kernelforge.ops.compress.kernel_backward:no_such_kernel")
    with workers.compiling(1), pytest.raises(AttributeError, match="no_such_kernel"):
        kernels.artifact(wrong, *cpu)


def test_a_worker_that_died_is_replaced(cpu):
    other = KernelSpec.of(KERNEL.builder, **{**dict(KERNEL.parameters), "D": 64})
    with workers.compiling(1):
        kernels.artifact(KERNEL, *cpu)
        (first,) = _pids()
        os.kill(first, signal.SIGKILL)
        kernels.artifact(other, *cpu)
        third = KernelSpec.of(KERNEL.builder, **{**dict(KERNEL.parameters), "D": 96})
        kernels.artifact(third, *cpu)
        assert len(_pids()) == 2


def test_parameters_that_text_would_change_stay_here(cpu, tmp_path):
    spec = KernelSpec.of("module:function", shape=(1, 2))
    with workers.compiling(1):
        found = workers.current()
        assert found is not None
        assert not found.compile(spec, "cpu", cpu[1], tmp_path)
        assert _pids() == []
