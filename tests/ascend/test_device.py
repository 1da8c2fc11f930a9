"""The path to a real Ascend 950, against stand-ins for bisheng and CANN's runtime."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import ascend_kernels as kernels
from ascend_harness import backend, lowered

from kernelforge.backends import DeviceUnavailable
from kernelforge.backends.interface import CompileFailed, CompilerMissing
from kernelforge_ascend import acl, bisheng, npu_executable
from kernelforge_ascend.backend import ARCH, REAL, VIRTUAL, VIRTUAL_ARCH
from kernelforge_ascend.marshal import Memory
from kernelforge_ascend.npu_executable import NpuExecutable

HERE = Path(__file__).parent
without_npu = pytest.mark.skipif(shutil.which("bisheng") is not None, reason="CANN is installed here")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("acl") / "libascendcl.so"
    subprocess.run(["gcc", "-shared", "-fPIC", str(HERE / "fake_ascendcl.c"), "-o", str(path)], check=True)
    return path


@pytest.fixture
def log(library):
    fake = ctypes.CDLL(str(library))
    fake.fake_log.restype = ctypes.c_char_p
    fake.fake_reset()
    return lambda: fake.fake_log().decode().splitlines()


def executable(library: Path, image: bytes = b"image", device: int = 0) -> NpuExecutable:
    info = lowered(kernels.columns_gemm, 32, 64, 128, 32).info
    return NpuExecutable(
        image,
        info,
        acl.Runtime(library),
        "cpu",
        stream=lambda: 0x55,
        device=lambda: device,
        allocate=lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8),
    )


def operands() -> list[torch.Tensor]:
    return [
        torch.zeros(32, 128, dtype=torch.int8),
        torch.zeros(64, 128, dtype=torch.int8),
        torch.zeros(32, 64, dtype=torch.int32),
    ]


def test_a_launch_hands_over_function_stream_and_arguments(library, log):
    tensors = operands()
    kernel = executable(library)
    kernel(*tensors)
    kernel(*tensors)
    load, function, first, second = log()
    assert load == "load image"
    assert function == "function main_kernel of 0x1000"
    head, _, arguments = first.partition(" arguments ")
    assert head == "launch 0x123456789abc blocks 1 stream 0x55 attribute 2 = 14336"
    words = bytes.fromhex(arguments.replace(" ", ""))
    pointers = [int.from_bytes(words[i : i + 8], "little") for i in range(0, len(words), 8)]
    assert pointers[:3] == [tensor.data_ptr() for tensor in tensors]
    assert len(pointers) == 5, "two workspaces"
    assert 0 not in pointers
    assert second.startswith("launch"), "loaded once"


def test_arguments_are_packed_at_multiples_of_their_size():
    packed = acl.pack(
        [7, Memory(0x1122334455667788, 4), -2, 9, 1 << 40], ["int32", "handle", "int32", "int32", "int64"]
    )
    assert packed == (
        bytes([7, 0, 0, 0, 0, 0, 0, 0])
        + (0x1122334455667788).to_bytes(8, "little")
        + bytes([0xFE, 0xFF, 0xFF, 0xFF, 9, 0, 0, 0])
        + (1 << 40).to_bytes(8, "little")
    )


def test_nothing_is_launched_for_no_rows(library, log):
    info = lowered(kernels.scaled_gemm, 64, 256, 64, 64, 64).info
    kernel = NpuExecutable(b"i", info, acl.Runtime(library), "cpu", lambda: 0, lambda: 0, lambda nbytes: None)
    a, sa, c = torch.zeros(0, 256, dtype=torch.int8), torch.zeros(0, 4), torch.zeros(0, 64)
    kernel(a, torch.zeros(64, 256, dtype=torch.int8), sa, torch.zeros(64, 4), c)
    assert log() == []


def test_errors_of_the_runtime_carry_its_words(library):
    with pytest.raises(acl.AclError, match="ACL error 7: the fake refuses empty binaries"):
        executable(library, image=b"")(*operands())


def test_tensors_must_fit(library):
    a, b, c = operands()
    kernel = executable(library)
    with pytest.raises(TypeError, match="takes 3 tensors, given 2"):
        kernel(a, b)
    with pytest.raises(ValueError, match=r"A: given .* with strides .*wanted it contiguous; pass A\.contiguous\(\)"):
        kernel(a.T.contiguous().T, b, c)
    with pytest.raises(ValueError, match="B is on meta"):
        kernel(a, b.to("meta"), c)


def test_a_missing_runtime_is_reported():
    with pytest.raises(DeviceUnavailable, match=r"set_env\.sh"):
        acl.Runtime("libascendcl-that-does-not-exist.so")


FAKE_BISHENG = """#!/bin/sh
echo "$0 $@" >> "$(dirname "$0")/calls"
grep -q refuse "$0.mode" 2>/dev/null && { echo "kernel.asc:1: no"; exit 1; }
while [ $# -gt 0 ]; do
  if [ "$1" = "-o" ]; then echo binary > "$2"; fi
  shift
done
"""


@pytest.fixture
def toolchain(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cann" / "bin"
    folder.mkdir(parents=True)
    for name in ("bisheng", "ld.lld"):
        (folder / name).write_text(FAKE_BISHENG)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("BISHENG_HOME", str(folder.parent))
    return folder


def test_bisheng_compiles_for_the_950_without_contraction(toolchain, tmp_path):
    result = lowered(kernels.row_sums, 50, 160, 16)
    backend.build(result.source, result.info, ARCH, tmp_path)
    compile_call, link_call = (toolchain / "calls").read_text().splitlines()
    assert "--npu-arch=dav-3510" in compile_call
    assert "-ffp-contract=off" in compile_call
    assert f"-I{bisheng.tilelang_headers()}" in compile_call
    assert "ld.lld" in link_call
    assert (tmp_path / bisheng.BINARY).read_text() == "binary\n"
    assert (tmp_path / bisheng.SOURCE).read_text() == result.source


def test_what_bisheng_says_is_reported(toolchain, tmp_path):
    (toolchain / "bisheng.mode").write_text("refuse")
    with pytest.raises(CompileFailed, match=r"kernel\.asc:1: no"):
        bisheng.build("nonsense", tmp_path)


@without_npu
def test_without_cann_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("BISHENG_HOME", raising=False)
    with pytest.raises(CompilerMissing, match="install CANN"):
        bisheng.build("", tmp_path)
    with pytest.raises(DeviceUnavailable, match="torch_npu"):
        npu_executable.load(tmp_path, lowered(kernels.row_sums, 50, 160, 16).info)


@without_npu
def test_the_backend_describes_its_devices_and_tools():
    real, virtual = backend.devices()
    assert (real.name, real.available, real.virtual) == (REAL, False, False)
    assert "torch_npu is not installed" in real.detail
    assert (virtual.name, virtual.available, virtual.virtual) == (VIRTUAL, True, True)
    assert [tool.name for tool in backend.tools()] == ["bisheng", "C++ compiler of ascend:virtual"]
    assert backend.default_arch(VIRTUAL) == VIRTUAL_ARCH
    assert backend.default_arch(REAL) == ARCH
    assert set(backend.archs()) == {ARCH, VIRTUAL_ARCH}


def test_both_archs_lower_to_the_same_source():
    from kernelforge.lowering import lower

    function = kernels.row_sums(50, 160, 16)
    assert lower(function, backend, ARCH).source == lower(function, backend, VIRTUAL_ARCH).source
