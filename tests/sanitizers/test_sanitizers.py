"""Both executors under AddressSanitizer and ThreadSanitizer: no report, and the same bits as without."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import instrumented
import numpy as np
import pytest
import scenarios
from ascendc import vector

from kernelforge_ascend.virtual import build
from kernelforge_cuda import nvcc

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("worker.py")
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(why is not None, reason=why or ""))
    for kind in instrumented.KINDS
    for why in [instrumented.missing(kind)]
]
needs_nvcc = pytest.mark.skipif(nvcc.find() is None, reason="nvcc is not installed")
RUNS = 6  # three landings, with and without the checkers


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> object:
    """Instrumented runtimes stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERNELFORGE_CACHE", str(instrumented.BUILD / "cache"))
        yield


@pytest.fixture(scope="session")
def cuda_scenarios(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return scenarios.cuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="session")
def ascend_scenarios(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return scenarios.ascend(tmp_path_factory.mktemp("ascend"))


def run(kind: str, executor: str, how: str, folders: list[Path]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WORKER), executor, how, *map(str, folders)]
    return subprocess.run(
        command, env=instrumented.environment(kind), capture_output=True, text=True, timeout=3000, check=False
    )


def assert_clean(done: subprocess.CompletedProcess[str], runs: int) -> None:
    said = done.stdout[-2000:] + done.stderr[:20000]
    assert not any(mark in done.stderr for mark in instrumented.REPORTS), said
    assert done.returncode == 0, said
    assert len(done.stdout.splitlines()) == runs, said


@needs_nvcc
@pytest.mark.parametrize("kind", KINDS)
def test_virtual_cuda_gives_no_report(kind: str, cuda_scenarios: list[Path]) -> None:
    done = run(kind, "cuda", str(instrumented.virtual_cuda(kind)), cuda_scenarios)
    assert_clean(done, RUNS * len(cuda_scenarios))


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_ascend_gives_no_report(kind: str, ascend_scenarios: list[Path]) -> None:
    scenarios.build_ascend(ascend_scenarios, kind)
    assert_clean(run(kind, "ascend", kind, ascend_scenarios), RUNS * len(ascend_scenarios))


# -- The sanitizers see what they are here for ------------------------------------------------------------------------

DEFECTS = {
    "address": ("allocate.cpp", "entry.slots = next;", "entry.slots = next / 2;", "heap-buffer-overflow"),
    "thread": ("scheduler.cpp", "std::lock_guard<std::mutex> hold(lock);\n      stats", "stats", "data race"),
}


@needs_nvcc
@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_planted_in_virtual_cuda_is_reported(kind: str, cuda_scenarios: list[Path], tmp_path: Path) -> None:
    """Half a register file; sums of several threads without their lock."""
    name, original, defect, report = DEFECTS[kind]
    sources = tmp_path / "virtual_cuda"
    shutil.copytree(instrumented.VIRTUAL_CUDA, sources)
    text = (sources / name).read_text()
    assert text.count(original) == 1
    (sources / name).write_text(text.replace(original, defect))
    chosen = [folder for folder in cuda_scenarios if folder.name == "int8_gemm-sm_80"]
    done = run(kind, "cuda", str(instrumented.virtual_cuda(kind, sources)), chosen)
    assert report in done.stderr
    assert name.removesuffix(".cpp") in done.stderr or kind == "address"
    assert done.returncode != 0


STORES = {
    # The element behind the argument, by one block; one element that several blocks store.
    "address": ("heap-buffer-overflow", "Y[64] = (int32_t)threadIdx.x", 1),
    "thread": ("data race", "Y[0] = (int32_t)threadIdx.x", 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_store_of_an_ascend_kernel_is_reported(kind: str, tmp_path: Path) -> None:
    """Stores of vector functions, on the stack of a fiber, in kernels without the executor's own checkers."""
    report, store, blocks = STORES[kind]
    function = f"__simt_vf__ inline void work(__gm__ int32_t* Y) {{\n  asc_syncthreads();\n  {store};\n}}\n"
    source = vector("__gm__ int32_t* Y", "    asc_vf_call<work>(cce::dim3(32), Y);\n", function)
    folder = tmp_path / "scenario"
    (folder / kind).mkdir(parents=True)
    build(source, folder / kind, sanitize=kind)
    np.save(folder / "Y.npy", np.zeros(64, np.int32))
    facts = {"arrays": ["Y"], "outputs": [], "parameters": ["Y"], "workspaces": {}, "scalars": {}, "blocks": blocks}
    facts |= {"checks": [False]}
    (folder / "scenario.json").write_text(json.dumps(facts))
    done = run(kind, "ascend", kind, [folder])
    assert report in done.stderr, done.stdout[-2000:] + done.stderr[-2000:]
    assert "in work" in done.stderr or "work(" in done.stderr
    assert done.returncode != 0
