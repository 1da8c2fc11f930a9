"""What a process imports, keeps and survives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kernelforge import backends

CALL = """
import torch
import kernelforge as kf
a = torch.arange(3 * 16, dtype=torch.uint8).reshape(3, 16)
s = torch.full((3, 1), 127, dtype=torch.uint8)
w = torch.arange(5 * 16, dtype=torch.uint8).reshape(5, 16)
ws = torch.full((5, 1), 127, dtype=torch.uint8)
def call(device="cpu"): return kf.mxfp4_gemm(a, s, w, ws, torch.float32, backend=device)
"""

WATCH = """
import sys
started = []
starts = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
sys.addaudithook(lambda event, args: started.append(str(args[0])) if event in starts else None)
"""


def _python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Path:
    """A cache that holds the kernel of :data:`CALL`."""
    root = tmp_path_factory.mktemp("cache")
    done = _python(CALL + "call()", KERNELFORGE_CACHE=str(root))
    assert done.returncode == 0, done.stderr
    return root


def test_import_loads_neither_torch_nor_tilelang():
    done = _python("import sys, kernelforge; print(*sys.modules)")
    assert not {"torch", "tilelang", "numpy", "tvm"} & set(done.stdout.split())


def test_import_takes_less_than_half_a_second():
    program = "import time; start = time.perf_counter(); import kernelforge; print(time.perf_counter() - start)"
    assert min(float(_python(program).stdout) for _ in range(3)) < 0.5


def test_import_after_torch_registers_the_ops_without_tilelang():
    done = _python("import sys, torch, kernelforge; torch.ops.kernelforge.mxfp4_gemm.default; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert "tilelang" not in done.stdout.split()


def test_a_second_process_finds_its_kernel_without_tilelang(warm):
    done = _python(CALL + "import sys; call(); print(*sys.modules)", KERNELFORGE_CACHE=str(warm))
    assert done.returncode == 0, done.stderr
    assert "tilelang" not in done.stdout.split()


def test_a_second_process_needs_no_compiler(warm, tmp_path):
    done = _python(CALL + "call()", KERNELFORGE_CACHE=str(warm), PATH=str(tmp_path), CXX="")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("device", ["cpu", "cuda:virtual", "ascend:virtual"])
def test_a_second_process_starts_no_other_program(tmp_path, device):
    """Neither to compile nor to ask a compiler for its version."""
    try:
        backends.device(device)
    except backends.DeviceUnavailable as error:
        pytest.skip(str(error))
    program = CALL + WATCH + f"out = call({device!r}).numpy().tobytes().hex()\nprint(out, *started)"
    first, second = (_python(program, KERNELFORGE_CACHE=str(tmp_path)) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    (bits, *compilers), (again, *started) = first.stdout.split(), second.stdout.split()
    assert any(name.endswith(("++", "cc")) for name in compilers)  # what the second process is spared is seen here
    assert started == []
    assert again == bits


def test_a_missing_compiler_is_named_with_what_to_install(tmp_path):
    done = _python(CALL + "call()", KERNELFORGE_CACHE=str(tmp_path / "cache"), PATH=str(tmp_path), CXX="")
    assert done.returncode != 0
    assert "CompilerMissing: no C++ compiler found: install g++ or clang++" in done.stderr
    assert not list((tmp_path / "cache").glob("mxfp4*/manifest.json"))


def test_a_compiler_that_fails_is_quoted(tmp_path):
    compiler = tmp_path / "bad-cxx"
    compiler.write_text("#!/bin/sh\necho 'internal compiler error: out of luck' >&2\nexit 3\n")
    compiler.chmod(0o755)
    done = _python(CALL + "call()", KERNELFORGE_CACHE=str(tmp_path / "cache"), CXX=str(compiler))
    assert "CompileFailed" in done.stderr
    assert "out of luck" in done.stderr


def test_a_truncated_library_is_rebuilt_to_the_same_bits(warm, tmp_path):
    import shutil

    copy = tmp_path / "cache"
    shutil.copytree(warm, copy)
    (library,) = copy.glob("*/kernel.so")
    library.write_bytes(library.read_bytes()[:1000])
    program = CALL + "print(call().numpy().tobytes().hex())"
    rebuilt = _python(program, KERNELFORGE_CACHE=str(copy))
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert rebuilt.stdout == _python(program, KERNELFORGE_CACHE=str(warm)).stdout
    assert library.stat().st_size > 1000


def test_two_processes_compile_the_same_kernel_at_once(tmp_path):
    program = CALL + "print(call().numpy().tobytes().hex())"
    environment = {**os.environ, "KERNELFORGE_CACHE": str(tmp_path)}
    racing = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in racing]
    assert [process.returncode for process in racing] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    entries = [path.parent.name.partition("-")[0] for path in sorted(tmp_path.glob("*/manifest.json"))]
    assert entries == ["kf_mx_block_accumulate_e2m1", "mxfp4_gemm"]  # the microkernel and the kernel linked with it


def test_a_forked_child_computes_the_same_bits(warm):
    program = CALL + (
        "import os, sys\n"
        "torch.set_num_threads(2)\n"
        "big = lambda x, r: x.repeat(r, 1)\n"
        "a, s = big(a, 400), big(s, 400)\n"
        "before = call()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if torch.equal(call(), before) else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    done = _python(program, KERNELFORGE_CACHE=str(warm))
    assert done.stdout.strip() == "0", done.stderr


def test_threads_share_a_kernel(warm, monkeypatch):
    monkeypatch.setenv("KERNELFORGE_CACHE", str(warm))
    scope: dict[str, object] = {}
    exec(CALL, scope)
    call, outputs = scope["call"], []
    threads = [threading.Thread(target=lambda: outputs.append(call())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 8
    assert all(bool((out == outputs[0]).all()) for out in outputs)
