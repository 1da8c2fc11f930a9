"""Kernels and their lowering, shared by the CUDA tests."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tilelang.language as T

from kernelforge.backends import LaunchInfo
from kernelforge.lowering import Lowered, lower, trace
from kernelforge.numerics.tile.composite import composite
from kernelforge_cuda import nvcc
from kernelforge_cuda.backend import CudaBackend

A_FORMATS = ("e2m1", "e4m3_e8m0", "e4m3_f32", "bf16")
GEMM = "kernelforge.ops.mxfp4_gemm.kernel:mxfp4_gemm"
SMALL = {"block_M": 64, "block_N": 64, "block_K": 128, "threads": 128, "num_stages": 2}
backend = CudaBackend()
# One grouped format stands for the others on an ordinary run.
GEMMS = [
    pytest.param(
        a_format,
        experts,
        arch,
        id=f"{a_format}-{'grouped' if experts else 'dense'}-{arch}",
        marks=[pytest.mark.slow] if experts and a_format != "e4m3_f32" else [],
    )
    for a_format in A_FORMATS
    for experts in (0, 3)
    for arch in ("sm_80", "sm_90a")
]


@functools.cache
def lower_gemm(
    arch: str,
    a_format: str,
    experts: int = 0,
    N: int = 192,
    K: int = 416,
    out: str = "bfloat16",
    **schedule: Any,
) -> Lowered:
    """The MXFP4 GEMM in CUDA C++; ``schedule`` overrides :data:`SMALL`."""
    parameters = {
        "N": N,
        "K": K,
        "experts": experts,
        "a_format": a_format,
        "out_dtype": out,
        **SMALL,
        **schedule,
    }
    return lower(trace(GEMM, parameters), backend, arch)


class Built(NamedTuple):
    """A compiled kernel: its launch information, files, and registers and spills."""

    info: LaunchInfo
    directory: Path
    report: dict[str, Any]

    @property
    def ptx(self) -> str:
        return (self.directory / nvcc.PTX).read_text()


_scratch = tempfile.TemporaryDirectory(prefix="kernelforge-cuda-tests-")


@functools.cache
def built_gemm(arch: str, a_format: str, experts: int = 0, **parameters: Any) -> Built:
    """A compiled GEMM, compiled once for all tests of a process."""
    lowered = lower_gemm(arch, a_format, experts, **parameters)
    directory = Path(tempfile.mkdtemp(dir=_scratch.name))
    return Built(lowered.info, directory, build(lowered, arch, directory))


def build(lowered: Lowered, arch: str, directory: Path) -> dict[str, Any]:
    """Compile; the report of registers and spills of the kernel."""
    backend.build(lowered.source, lowered.info, arch, directory)
    nvcc.assemble(directory, lowered.info, arch, directory)
    report: dict[str, Any] = json.loads((directory / nvcc.RESOURCES).read_text())
    assert report["arch"] == arch
    return report


def axpy(rows: int = 64):
    """out = a * x + y in fp32: an inexact product that enters a sum."""

    @T.prim_func
    def axpy_kernel(
        a: T.Tensor((rows, 64), "float32"),
        x: T.Tensor((rows, 64), "float32"),
        y: T.Tensor((rows, 64), "float32"),
        out: T.Tensor((rows, 64), "float32"),
    ):
        with T.Kernel(rows // 16, threads=128) as bx:
            for i, j in T.Parallel(16, 64):
                out[bx * 16 + i, j] = a[bx * 16 + i, j] * x[bx * 16 + i, j] + y[bx * 16 + i, j]

    return axpy_kernel


def rows_along_y():
    """out = x + 1, a row to each block along y, half of its channels along x."""
    rows = T.dynamic("rows")

    @T.prim_func
    def next_integers(x: T.Tensor((rows, 64), "int32"), out: T.Tensor((rows, 64), "int32")):
        with T.Kernel(2, rows, threads=32) as (bx, by):
            for j in T.Parallel(32):
                out[by, bx * 32 + j] = x[by, bx * 32 + j] + 1

    return next_integers


def doubled_region():
    """out = 2 x inside a composite."""

    @T.prim_func
    def doubled(x: T.Tensor((16, 64), "float32"), out: T.Tensor((16, 64), "float32")):
        with T.Kernel(1, threads=128):
            tile = T.alloc_shared((16, 64), "float32")
            T.copy(x, tile)
            with composite("twice", tile, variant=3):
                for i, j in T.Parallel(16, 64):
                    tile[i, j] = tile[i, j] + tile[i, j]
            T.copy(tile, out)

    return doubled


def pipelined(scales: str):
    """C = sum over k of A B^T, scaled by nothing ("none"), tiles of S ("rows") or a column of it ("column")."""

    @T.prim_func
    def pipelined_kernel(
        A: T.Tensor((64, 256), "int8"),
        B: T.Tensor((64, 256), "int8"),
        S: T.Tensor((64, 256), "int32"),
        C: T.Tensor((64, 64), "int32"),
    ):
        with T.Kernel(1, threads=128):
            a = T.alloc_shared((64, 64), "int8")
            b = T.alloc_shared((64, 64), "int8")
            rows = T.alloc_shared((64, 64), "int32")
            column = T.alloc_shared((64, 1), "int32")
            dot = T.alloc_fragment((64, 64), "int32")
            acc = T.alloc_fragment((64, 64), "int32")
            T.clear(acc)
            for k in T.Pipelined(4, num_stages=2):
                T.copy(A[0, k * 64], a)
                T.copy(B[0, k * 64], b)
                if scales == "rows":
                    T.copy(S[0, k * 64], rows)
                if scales == "column":
                    T.copy(S[0, k], column)
                T.gemm(a, b, dot, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(64, 64):
                    if scales == "rows":
                        acc[i, j] = acc[i, j] + dot[i, j] * rows[i, j]
                    elif scales == "column":
                        acc[i, j] = acc[i, j] + dot[i, j] * column[i, 0]
                    else:
                        acc[i, j] = acc[i, j] + dot[i, j]
            T.copy(acc, C)

    return pipelined_kernel


@functools.cache
def lowered_pipelined(scales: str) -> Lowered:
    """:func:`pipelined` in CUDA C++ for sm_90a."""
    return lower(pipelined(scales), backend, "sm_90a")
