"""The microkernels, called in this process or in one that an emulator of another CPU runs."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any, Protocol

from microkernel_contract import Array

INCLUDE = Path(__file__).resolve().parents[2] / "csrc" / "cpu"
HARNESS = Path(__file__).with_name("microkernels_harness.cpp")
SERVER = Path(__file__).with_name("microkernels_server.cpp")
FLAGS = ["-O3", "-std=c++17", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror"]

ISAS = {"portable": 0, "neon": 1, "avx2": 2, "avx512bf16": 3, "avx512vnni": 4, "amx": 5}
FORMATS = {"e2m1": 0, "e4m3_e8m0": 1, "e4m3_f32": 2, "bf16": 3}

CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
MISSING_EMULATOR = (
    f"the NEON engine runs here by {CROSS_COMPILER} and {EMULATOR}: apt-get install g++-aarch64-linux-gnu qemu-user"
)


def compile_cpp(source: Path, target: Path, *flags: str, compiler: str | None = None) -> None:
    """Compile a C++ file that includes the microkernels."""
    command = [compiler or os.environ.get("CXX", "g++"), *FLAGS, *flags, f"-I{INCLUDE}", str(source), "-o", str(target)]
    subprocess.run(command, check=True)


class Library(Protocol):
    """Where the engines run; ``isas`` are the instruction sets there. Arrays may have a row stride."""

    isas: list[str]

    def mx(
        self,
        isa: str,
        acc: Array,
        a: Any,
        a_scale: Any,
        w: Any,
        w_scale: Any,
        k: int,
        a_format: str,
        clear: bool = False,
    ) -> int:
        """acc (+)= A W^T by one engine; returns its status."""

    def gemm_s8(self, isa: str, c: Array, a: Array, b: Array, trans_b: bool, clear: bool) -> int:
        """c (+)= A B by one engine; returns its status."""


def pointer(x: Array | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.ctypes.data)


def stride(x: Array | None) -> ctypes.c_int64:
    return ctypes.c_int64(0 if x is None else x.strides[0] // x.itemsize)


def flat(*operands: Array | None) -> list[Any]:
    """Pointer and leading dimension of each operand."""
    return [argument for x in operands for argument in (pointer(x), stride(x))]


class Host:
    """The harness as a shared library; ``harness`` has its other functions."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "harness.so"
        compile_cpp(HARNESS, self.path, "-fPIC", "-shared")
        self.harness = ctypes.CDLL(str(self.path))
        self.isas = [name for name, code in ISAS.items() if self.harness.harness_isa_available(code)]

    def mx(
        self,
        isa: str,
        acc: Array,
        a: Any,
        a_scale: Any,
        w: Any,
        w_scale: Any,
        k: int,
        a_format: str,
        clear: bool = False,
    ) -> int:
        operands = flat(acc, a, a_scale, w, w_scale)
        return self.harness.harness_mx(ISAS[isa], *operands, *acc.shape, k, FORMATS[a_format], int(clear))

    def gemm_s8(self, isa: str, c: Array, a: Array, b: Array, trans_b: bool, clear: bool) -> int:
        sizes = (*c.shape, a.shape[1], int(trans_b), int(clear))
        return self.harness.harness_gemm_s8(ISAS[isa], *flat(c, a, b), *sizes)


class Emulated:
    """The harness as a program for AArch64 under an emulator, asked over pipes (microkernels_server.cpp).

    The server puts each operand before an unreadable page, so a read past the end stops it.
    """

    _MX, _GEMM, _ISA = range(3)

    def __init__(self, folder: Path) -> None:
        program = folder / "server"
        compile_cpp(SERVER, program, "-static", compiler=CROSS_COMPILER)
        self.process = subprocess.Popen([EMULATOR, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.turn = threading.Lock()
        self.isas = [name for name, code in ISAS.items() if self._ask(self._ISA, code, (0,) * 5, [])]

    @staticmethod
    def missing() -> bool:
        return shutil.which(CROSS_COMPILER) is None or shutil.which(EMULATOR) is None

    def close(self) -> None:
        self.process.communicate(timeout=60)

    def mx(
        self,
        isa: str,
        acc: Array,
        a: Any,
        a_scale: Any,
        w: Any,
        w_scale: Any,
        k: int,
        a_format: str,
        clear: bool = False,
    ) -> int:
        sizes = (*acc.shape, k, FORMATS[a_format], int(clear))
        return self._ask(self._MX, ISAS[isa], sizes, [acc, a, a_scale, w, w_scale])

    def gemm_s8(self, isa: str, c: Array, a: Array, b: Array, trans_b: bool, clear: bool) -> int:
        return self._ask(self._GEMM, ISAS[isa], (*c.shape, a.shape[1], int(trans_b), int(clear)), [c, a, b])

    def _ask(self, what: int, isa: int, sizes: tuple[int, ...], operands: list[Array | None]) -> int:
        """One request; the first operand comes back changed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        spans = [_span(x) for x in operands]
        strides = [stride(x).value for x in operands]
        header = struct.pack("<7i10q", what, isa, *sizes, *_five(strides), *_five(spans))
        with self.turn:
            contents = [
                b"" if x is None else ctypes.string_at(x.ctypes.data, n) for x, n in zip(operands, spans, strict=True)
            ]
            self.process.stdin.write(b"".join([header, *contents]))
            self.process.stdin.flush()
            reply = self.process.stdout.read(4 + sum(spans[:1]))
            assert len(reply) == 4 + sum(spans[:1]), f"the emulated program ended with {self.process.poll()}"
            if operands and operands[0] is not None:
                ctypes.memmove(operands[0].ctypes.data, reply[4:], spans[0])
        return int(struct.unpack("<i", reply[:4])[0])


def _five(values: list[int]) -> list[int]:
    return values + [0] * (5 - len(values))


def _span(x: Array | None) -> int:
    """Bytes from the first element to behind the last."""
    if x is None or x.size == 0:
        return 0
    return (x.shape[0] - 1) * x.strides[0] + x.shape[1] * x.itemsize
