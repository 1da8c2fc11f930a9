"""The compiler fuses no multiplication with an addition, also where its flags alone do not stop it."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernelforge.backends import CompileFailed
from kernelforge_cpu import assembly, compiler

# A rotation of two pairs: GCC 12 makes one vfmaddsub of it, with -ffp-contract=off.
ROTATION = """
extern "C" void rotate(const float* __restrict a, float c, float s, float* __restrict out) {
  out[0] = a[0] * c - a[1] * s;
  out[1] = a[1] * c + a[0] * s;
  out[2] = a[2] * c - a[3] * s;
  out[3] = a[3] * c + a[2] * s;
}
"""


@pytest.mark.parametrize(
    "line",
    [
        "\tvfmadd132ps\t%zmm1, %zmm2, %zmm3",
        "\tvfnmsub231ss\t%xmm1, %xmm2, %xmm3",
        "\tvfmaddsub213ps\t(%rax), %ymm1, %ymm0",
        "\tfmla\tv0.4s, v1.4s, v2.4s",
        "\tfmadd\ts0, s1, s2, s3",
        "\tfnmsub\ts0, s1, s2, s3",
    ],
)
def test_fused_instructions_are_found(line: str) -> None:
    assert assembly.fused(f"main:\n\tret\n{line}\n\tret\n") == [line.strip()]


@pytest.mark.parametrize(
    "line", ["\tvmulps\t%zmm1, %zmm2, %zmm3", "\tvpmaddubsw\t%ymm1, %ymm2, %ymm3", "\tfmul\ts0, s1, s2"]
)
def test_other_instructions_are_not(line: str) -> None:
    assert assembly.fused(f"main:\n{line}\n") == []


def test_a_microkernel_may_ask_for_them_by_name() -> None:
    text = "\tvfmadd132ps\t%zmm1, %zmm2, %zmm3\n\tvfmsubadd132ps\t%zmm1, %zmm2, %zmm3\n"
    assert assembly.fused(text, microkernel=True) == ["vfmsubadd132ps\t%zmm1, %zmm2, %zmm3"]


@pytest.fixture(params=["native", "x86-64-v3"] if platform.machine() == "x86_64" else ["native"])
def arch(request: Any) -> str:
    return str(request.param)


def _assembly(directory: Path, arch: str) -> Path:
    (directory / "rotation.cpp").write_text(ROTATION)
    return compiler._assembly("rotation.cpp", arch, directory, "a rotation")


def test_a_rotation_has_two_roundings(tmp_path: Path, arch: str) -> None:
    made = _assembly(tmp_path, arch)
    assert assembly.fused(made.read_text()) == []
    compiler._compile(["-shared", made.name, "-o", "rotation.so"], arch, tmp_path, "a rotation")
    rotate = ctypes.CDLL(str(tmp_path / "rotation.so")).rotate
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, (c, s) = rng.standard_normal(4).astype(np.float32), rng.standard_normal(2).astype(np.float32)
        out = np.empty(4, np.float32)
        rotate(
            a.ctypes.data_as(ctypes.c_void_p), ctypes.c_float(c), ctypes.c_float(s), out.ctypes.data_as(ctypes.c_void_p)
        )
        wanted = [a[0] * c - a[1] * s, a[1] * c + a[0] * s, a[2] * c - a[3] * s, a[3] * c + a[2] * s]
        assert out.tolist() == np.array(wanted, np.float32).tolist()


def test_the_guard_is_what_stops_gcc_12(tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flags to fall back on, a compiler that fuses the rotation is refused; one that does not, passes."""
    version = compiler._compiler_version()[1]
    monkeypatch.setattr(assembly, "CAREFUL", ((),))
    if platform.machine() == "x86_64" and "Free Software Foundation" in version and ") 12." in version:
        with pytest.raises(CompileFailed, match=r"rounds once where the contract rounds twice[^$]*vfmaddsub"):
            _assembly(tmp_path, arch)
    else:
        assert assembly.fused(_assembly(tmp_path, arch).read_text()) == []


def test_a_compiler_that_always_fuses_is_refused(tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "EXACT_FLAGS", ("-O3", "-std=c++17", "-ffp-contract=fast", "-mfma"))
    if platform.machine() != "x86_64":
        monkeypatch.setattr(compiler, "EXACT_FLAGS", ("-O3", "-std=c++17", "-ffp-contract=fast"))
    with pytest.raises(CompileFailed, match="set CXX to another compiler"):
        _assembly(tmp_path, arch)
