"""TileLang kernels that the virtual device's tests lower, with their exact results."""

import functools
from typing import Any

import ml_dtypes
import numpy as np
import tilelang
import tilelang.language as T
from tilelang import tvm

from kernelforge_cuda.virtual import compile_ptx, launch_info

DTYPES: dict[str, Any] = {
    "int8": np.int8,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "int32": np.int32,
    "float32": np.float32,
}


def scaled_gemm(M: int, N: int, K: int) -> Any:
    """C = sum over blocks of 128 of (A B^T) * (SA SB^T): two pipeline stages and an fp32 epilogue per block."""

    @T.prim_func
    def main(
        A: T.Tensor((M, K), "int8"),
        B: T.Tensor((N, K), "int8"),
        SA: T.Tensor((M, K // 128), "float32"),
        SB: T.Tensor((N, K // 128), "float32"),
        C: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(T.ceildiv(N, 128), T.ceildiv(M, 128), threads=128) as (bx, by):
            As = T.alloc_shared((128, 128), "int8")
            Bs = T.alloc_shared((128, 128), "int8")
            D = T.alloc_fragment((128, 128), "int32")
            Cf = T.alloc_fragment((128, 128), "float32")
            T.clear(Cf)
            for k in T.Pipelined(K // 128, num_stages=2):
                T.copy(A[by * 128, k * 128], As)
                T.copy(B[bx * 128, k * 128], Bs)
                T.gemm(As, Bs, D, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(128, 128):
                    Cf[i, j] = Cf[i, j] + T.cast(D[i, j], "float32") * (SA[by * 128 + i, k] * SB[bx * 128 + j, k])
            T.copy(Cf, C[by * 128, bx * 128])

    return main


def gemm(K: int, dtype: str, accumulator: str, transposed: bool, through_shared: bool) -> Any:
    """C = A B^T (or A B) for M rows, M dynamic, N = 128; the result goes out through shared memory or directly."""
    M, N = T.dynamic("m"), 128
    b_shape, b_tile = ((N, K), (N, 64)) if transposed else ((K, N), (64, N))

    @T.prim_func
    def main(A: T.Tensor((M, K), dtype), B: T.Tensor(b_shape, dtype), C: T.Tensor((M, N), accumulator)):
        with T.Kernel(T.ceildiv(M, 64), threads=128) as by:
            As = T.alloc_shared((64, 64), dtype)
            Bs = T.alloc_shared(b_tile, dtype)
            Cs = T.alloc_shared((64, N), accumulator)
            D = T.alloc_fragment((64, N), accumulator)
            T.clear(D)
            for k in T.Pipelined(K // 64, num_stages=3):
                T.copy(A[by * 64, k * 64], As)
                if transposed:
                    T.copy(B[0, k * 64], Bs)
                else:
                    T.copy(B[k * 64, 0], Bs)
                T.gemm(As, Bs, D, transpose_B=transposed)
            if through_shared:
                T.copy(D, Cs)
                T.copy(Cs, C[by * 64, 0])
            else:
                T.copy(D, C[by * 64, 0])

    return main


@functools.cache
def generated(factory: Any, arch: str, *arguments: Any) -> tuple[str, dict[str, Any]]:
    """(CUDA C++, launch info) of a kernel, lowered once per test session."""
    target = tvm.target.Target({"kind": "cuda", "arch": arch})
    with target:
        artifact = tilelang.lower(factory(*arguments), target=target)
    return artifact.kernel_source, launch_info(artifact)


@functools.cache
def built(factory: Any, arch: str, *arguments: Any) -> tuple[str, dict[str, Any]]:
    """(PTX, launch info) of a kernel, lowered and compiled once per test session."""
    source, info = generated(factory, arch, *arguments)
    return compile_ptx(source, arch), info


def scaled_gemm_case(M: int, N: int, K: int, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Operands and the fp32 result, one rounding at a time in the kernel's order."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-128, 128, (M, K)).astype(np.int8), rng.integers(-128, 128, (N, K)).astype(np.int8)
    sa, sb = (
        rng.standard_normal((M, K // 128)).astype(np.float32),
        rng.standard_normal((N, K // 128)).astype(np.float32),
    )
    c = np.zeros((M, N), np.float32)
    for q in range(K // 128):
        block = slice(128 * q, 128 * q + 128)
        dot = a[:, block].astype(np.int32) @ b[:, block].astype(np.int32).T
        c = c + dot.astype(np.float32) * (sa[:, q : q + 1] * sb[:, q][None])
    return {"A": a, "B": b, "SA": sa, "SB": sb}, c
