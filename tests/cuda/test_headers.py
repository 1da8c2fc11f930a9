"""Kernels in exact mode include one small header of ours: it means what TileLang's templates mean."""

from __future__ import annotations

import re

import pytest

from kernelforge_cuda import nvcc
from kernelforge_cuda.headers import OWN, with_own_headers
from kernelforge_cuda.virtual import compile_ptx

PROLOGUE = """#if defined(_MSC_VER) && !defined(__clang__) && _MSC_VER < 1940
#include <cuda.h>
#endif
#include <tl_templates/cuda/instruction/mma.h>
#include <tl_templates/cuda/copy.h>
#include <tl_templates/cuda/reduce.h>
#include <tl_templates/cuda/ldsm.h>
#include <tl_templates/cuda/debug.h>
#ifdef ENABLE_BF16
#include <tl_templates/cuda/cuda_bf16_fallbacks.cuh>
#endif

"""
EVERY_FUNCTION = """extern "C" __global__ void every(int* out, const uint4* in, ushort* codes, uchar flag) {
  extern __shared__ __align__(1024) uchar tiles[];
  uint a[4], b[2], c[4] = {1, 2, 3, 4};
  tl::cp_async_gs<16>(tiles, in);
  tl::cp_async_gs<4>(tiles + 16, in);
  tl::cp_async_gs_conditional<16>(tiles + 32, in + 1, flag > 3);
  tl::cp_async_gs_conditional<4>(tiles + 48, in + 1, flag > 5);
  tl::cp_async_commit();
  tl::cp_async_wait<1>();
  tl::cp_async_wait<0>();
  tl::__sync_thread_partial(3, 32);
  tl::ptx_ldmatrix_x4(tiles + threadIdx.x * 16, a);
  tl::ptx_ldmatrix_x2(tiles + threadIdx.x * 32, b);
  tl::mma_sync<tl::DataType::kInt8, tl::DataType::kInt8, tl::DataType::kInt32, 16, 8, 32, false, true>(c, a, b);
  *(int4*)(out + threadIdx.x * 4) = make_int4(c[0], c[1], c[2], c[3]);
  *(int4*)(out + 512) = tl::broadcast<int4>((int)c[2]);
  *(uint2*)(out + 600) = tl::broadcast<uint2>((ushort)flag);
  *(uint4*)(codes + 8) = make_uint4(codes[0], codes[1], codes[2], codes[3], codes[4], codes[5], codes[6], codes[7]);
  *(float*)(out + 700) = -CUDART_INF_F;
}
"""


def plain(statement: str) -> str:
    return f'{PROLOGUE}extern "C" __global__ void plain(float* out) {{ {statement} }}\n'


def instructions(ptx: str) -> list[str]:
    """What is executed, without comments, lines and the names that CUTLASS's headers define."""
    text = re.split(r"^\s*\.section", re.sub(r"//[^\n]*", "", ptx), flags=re.MULTILINE)[0]
    lines = [re.sub(r"\s+|;$", "", line) for line in text.splitlines()]
    return [line for line in lines if line and "_INTERNAL_" not in line and not line.startswith((".loc", ".file"))]


@pytest.mark.skipif(nvcc.find() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_both_headers_compile_to_the_same_instructions(arch):
    templates = PROLOGUE + EVERY_FUNCTION
    own = with_own_headers(templates)
    assert own.startswith(f"#include <{OWN}>\n")
    assert "tl_templates" not in own
    wanted = instructions(compile_ptx(templates, arch))
    assert instructions(compile_ptx(own, arch)) == wanted
    for opcode in ("cp.async.cg", "cp.async.ca", "cp.async.wait_group", "ldmatrix", "mma.sync", "bar.sync"):
        assert any(line.startswith(opcode) for line in wanted)


@pytest.mark.parametrize(
    "statement",
    [
        "tl::tma_load(descriptor, barrier, tile, 0, 0);",
        "tl::mma_sync<tl::DataType::kBFloat16, tl::DataType::kBFloat16, tl::DataType::kFloat32, 16, 8, 16, false, "
        "true>(c, a, b);",
        "cutlass::bfloat16_t x;",
        "half_t x;",
        "*(uint4*)out = make_uint4(a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, f(a, a));",
        "*(uint*)out = make_uint(a, a, a, a);",
        "AtomicAdd(out, 1);",
    ],
)
def test_a_kernel_that_needs_more_keeps_the_templates(statement):
    assert with_own_headers(plain(statement)) == plain(statement)


def test_a_header_that_is_not_in_every_kernel_keeps_the_templates():
    source = "#include <tl_templates/cuda/atomic.h>\n" + plain("out[0] = max(1, 2);")
    assert with_own_headers(source) == source


def test_calls_of_the_language_alone_need_no_templates():
    source = plain("if (out[0] < 1.f) out[0] = __fmul_rn(make_float2(out[1], max((int)out[2], 3)).y, 2.f);")
    assert with_own_headers(source).startswith(f"#include <{OWN}>\n")
