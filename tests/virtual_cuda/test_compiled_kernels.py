"""Kernels from TileLang and CUDA C++ through nvcc, executed on many schedules, bit for bit."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

import numpy as np
import pytest
from virtual_cuda_kernels import DTYPES, built, gemm, scaled_gemm, scaled_gemm_case

from kernelforge_cuda.virtual import Schedule, VirtualKernel, compile_ptx, lint_ptx
from kernelforge_cuda.virtual.launch import run

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
ARCHES = ["sm_80", "sm_90a"]


def schedules(count: int) -> list[Schedule]:
    return [
        Schedule(seed, landing, preempt)
        for seed in range(count)
        for landing in ("late", "early", "random")
        for preempt in (0.0, 0.03)
    ]


@pytest.mark.parametrize("arch", ARCHES)
def test_a_pipelined_gemm_has_the_same_bits_on_every_schedule(arch: str) -> None:
    ptx, info = built(scaled_gemm, arch, 256, 256, 512)
    kernel = VirtualKernel(ptx, json.loads(json.dumps(info)))
    operands, expected = scaled_gemm_case(256, 256, 512)
    for schedule in schedules(4):
        c = np.full(expected.shape, np.nan, np.float32)
        kernel({**operands, "C": c}, schedule=schedule)
        np.testing.assert_array_equal(c.view(np.uint32), expected.view(np.uint32))
    assert lint_ptx(ptx) == []


@pytest.mark.parametrize("arch", ARCHES)
def test_the_gemm_is_fast_enough_for_continuous_integration(arch: str) -> None:
    """Under 0.05 s without checks and 0.5 s with them on two threads, counted as processor time of a quiet machine."""
    ptx, info = built(scaled_gemm, arch, 256, 256, 512)
    kernel = VirtualKernel(ptx, info)
    operands, expected = scaled_gemm_case(256, 256, 512)
    for check, limit in ((False, 0.05), (True, 0.5)):
        times = []
        for _ in range(5):
            begin = time.process_time()
            kernel({**operands, "C": np.empty_like(expected)}, check=check, threads=2)
            times.append((time.process_time() - begin) / 2)
        assert min(times) < limit


GEMMS = [
    ("int8", "int32", True, False, 128),
    ("int8", "int32", False, False, 128),
    ("bfloat16", "float32", True, True, 60),
    ("bfloat16", "float32", False, False, 60),
    ("float8_e4m3fn", "float32", True, True, 5),
]


@pytest.mark.parametrize(
    ("arch", "dtype", "accumulator", "transposed", "through_shared", "limit"),
    # sm_80 has no FP8 unit.
    [(arch, *case) for arch in ARCHES for case in GEMMS if arch != "sm_80" or not case[0].startswith("float8")],
)
@pytest.mark.parametrize("m", [64, 150])
def test_gemms_of_every_engine(
    arch: str, dtype: str, accumulator: str, transposed: bool, through_shared: bool, limit: int, m: int
) -> None:
    ptx, info = built(gemm, arch, 256, dtype, accumulator, transposed, through_shared)
    rng = np.random.default_rng(m)
    a, b = rng.integers(-limit, limit, (m, 256)), rng.integers(-limit, limit, (128, 256))
    expected = (a @ b.T).astype(DTYPES[accumulator])
    arguments = {
        "A": a.astype(DTYPES[dtype]),
        "B": np.ascontiguousarray((b if transposed else b.T).astype(DTYPES[dtype])),
        "m": m,
    }
    kernel = VirtualKernel(ptx, info)
    for schedule in schedules(1):
        c = np.full(expected.shape, -7, expected.dtype)
        kernel({**arguments, "C": c}, schedule=schedule)
        np.testing.assert_array_equal(c, expected)


MICROPROGRAMS = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
extern "C" __global__ void block_sum(const int* x, int* out, int n) {
  __shared__ int part[8];
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(0xffffffff, sum, d);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < 8 ? part[threadIdx.x] : 0;
    for (int d = 4; d; d >>= 1) sum += __shfl_xor_sync(0xffffffff, sum, d);
    if (threadIdx.x == 0) atomicAdd(out, sum);
  }
}
extern "C" __global__ void collatz(const unsigned* x, unsigned* steps) {
  unsigned v = x[threadIdx.x], n = 0;
  while (v != 1) { v = v & 1 ? 3 * v + 1 : v / 2; ++n; }
  steps[threadIdx.x] = n;
}
extern "C" __global__ void conversions(
    const float* x, unsigned short* h, unsigned short* b, unsigned char* f8, float* back) {
  int i = threadIdx.x;
  h[i] = __half_as_ushort(__float2half_rn(x[i]));
  b[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
  f8[i] = __nv_cvt_float_to_fp8(x[i], __NV_SATFINITE, __NV_E4M3);
  back[i] = __half2float(__half(__nv_cvt_fp8_to_halfraw(f8[i], __NV_E4M3)));
}
extern "C" __global__ void classify(const int* x, int* y) {
  int r = 0;
  switch (x[threadIdx.x]) {
    case 0: r = 11; break; case 1: r = 7; break; case 2: r = x[0] * 5; break; case 3: r = -4; break;
    case 4: r = 99; break; case 5: r = x[1] - 8; break; case 6: r = 1234; break; default: r = -1;
  }
  int frame[16];
  for (int k = 0; k < 16; ++k) frame[k] = k * r;
  y[threadIdx.x] = frame[x[threadIdx.x] & 15] + __popc(r) + __clz(r) + (r < 0 ? __ffs(r) : 0);
}
extern "C" __global__ void wide(const long long* x, const unsigned* d, long long* q, unsigned* high) {
  int i = threadIdx.x;
  q[i] = x[i] / (long long)d[i] * 3 + x[i] % (long long)d[i];
  unsigned low = (unsigned)x[i];
  high[i] = __umulhi(low, d[i]) ^ __byte_perm(low, d[i], 0x5410) ^ __funnelshift_l(low, d[i], 7);
}
"""


@pytest.fixture(scope="module", params=ARCHES)
def microprograms(request: pytest.FixtureRequest) -> str:
    return compile_ptx(MICROPROGRAMS, request.param, includes=[])


def launch(ptx: str, entry: str, grid: int, block: int, *arguments: Any) -> None:
    run(ptx, entry, [grid], [block], arguments, schedule=Schedule(9, "random", 0.1))


def test_microprogram_block_reduction(microprograms: str) -> None:
    x, out = np.random.default_rng(0).integers(-(2**31), 2**31, 10_000).astype(np.int32), np.zeros(1, np.int32)
    launch(microprograms, "block_sum", 5, 256, x, out, len(x))
    assert out[0] == x.sum(dtype=np.int32)


def test_microprogram_divergent_loop(microprograms: str) -> None:
    x, steps = np.random.default_rng(1).integers(1, 1000, 96).astype(np.uint32), np.zeros(96, np.uint32)
    launch(microprograms, "collatz", 1, 96, x, steps)

    def count(v: int) -> int:
        n = 0
        while v != 1:
            v, n = (3 * v + 1 if v & 1 else v // 2), n + 1
        return n

    np.testing.assert_array_equal(steps, [count(int(v)) for v in x])


def test_microprogram_conversions(microprograms: str) -> None:
    x = (np.random.default_rng(2).standard_normal(64) * 2.0 ** np.arange(-32, 32)).astype(np.float32)
    h, b, f8, back = np.zeros(64, np.uint16), np.zeros(64, np.uint16), np.zeros(64, np.uint8), np.zeros(64, np.float32)
    launch(microprograms, "conversions", 1, 64, x, h, b, f8, back)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(h, x.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(b, x.astype(DTYPES["bfloat16"]).view(np.uint16))
    codes = np.clip(x, -448, 448).astype(DTYPES["float8_e4m3fn"])
    np.testing.assert_array_equal(f8, codes.view(np.uint8))
    np.testing.assert_array_equal(back, codes.astype(np.float32))


def test_microprogram_switch_and_local_memory(microprograms: str) -> None:
    x, y = np.random.default_rng(3).integers(-2, 9, 64).astype(np.int32), np.zeros(64, np.int32)
    launch(microprograms, "classify", 1, 64, x, y)
    table = {0: 11, 1: 7, 2: int(x[0]) * 5, 3: -4, 4: 99, 5: int(x[1]) - 8, 6: 1234}

    def value(v: int) -> int:
        r = table.get(v, -1)
        bits = r % 2**32
        first = (bits & -bits).bit_length() if r < 0 else 0
        return (v & 15) * r + bin(bits).count("1") + 32 - bits.bit_length() + first

    np.testing.assert_array_equal(y, [value(int(v)) for v in x])


def test_microprogram_64_bit_division_and_permutes(microprograms: str) -> None:
    rng = np.random.default_rng(4)
    x, d = rng.integers(-(2**62), 2**62, 32), rng.integers(1, 2**32, 32).astype(np.uint32)
    q, high = np.zeros(32, np.int64), np.zeros(32, np.uint32)
    launch(microprograms, "wide", 1, 32, x, d, q, high)
    for i in range(32):
        a, b = int(x[i]), int(d[i])
        quotient = abs(a) // b * (1 if a >= 0 else -1)
        assert q[i] == quotient * 3 + a - quotient * b
        low = a % 2**32
        permuted = (low & 0xFFFF) | (b & 0xFFFF) << 16
        assert high[i] == (low * b >> 32) ^ permuted ^ (((b << 32 | low) << 7 >> 32) % 2**32)


def test_cpu_tensors_are_arguments_too() -> None:
    torch = pytest.importorskip("torch")
    ptx = compile_ptx(
        'extern "C" __global__ void twice(float* x, float s) { x[threadIdx.x] *= s; }', "sm_80", includes=[]
    )
    x = torch.arange(32, dtype=torch.float32)
    run(ptx, "twice", [1], [32], [x, 2.5])
    assert torch.equal(x, torch.arange(32) * 2.5)
