// What the C code generated for the CPU backend may call: scalar operations, inlined, and microkernels.
//
// C++17. Flags: -O3 -std=c++17 -ffp-contract=off -fwrapv -fno-strict-aliasing; no -march is needed, the engines carry
// their own targets and one is chosen at run time (environment variable KERNELFORGE_CPU_ISA =
// amx | avx512vnni | avx512bf16 | avx2 | neon | portable overrides the choice, which depends on the format of A). All
// engines give the same bits.
//
// A microkernel NAME is compiled once, from units/NAME.cpp, and its object is linked into every kernel that calls it:
// engines take seconds to compile, a kernel without them a fraction of one. They return a status, 0 for success.
#pragma once

#include <cstdint>

#include "kf_scalar.h"

#define KF_MICROKERNEL extern "C" __attribute__((visibility("hidden")))

// acc[m,n] += the sum over K's blocks of 32, ascending, of A W^T; k counts elements. Leading dimensions count elements
// of the stored type. One function for each format of A, named as in kernelforge.numerics.block_accumulate.
#define KF_DECLARE(format)                                                                             \
  KF_MICROKERNEL int32_t kf_mx_block_accumulate_##format(                                              \
      float* acc, int64_t ld_acc, const void* a, int64_t lda, const void* a_scale, int64_t ld_a_scale, \
      const uint8_t* w, int64_t ldw, const uint8_t* w_scale, int64_t ld_w_scale, int32_t m, int32_t n, int32_t k);
KF_DECLARE(e2m1)
KF_DECLARE(e4m3_e8m0)
KF_DECLARE(e4m3_f32)
KF_DECLARE(bf16)
#undef KF_DECLARE

// C[m,n] (+)= A B, or A B^T if trans_b; exact modulo 2^32. `clear`: C starts from zero.
KF_MICROKERNEL int32_t kf_gemm_s8(int32_t* c, int64_t ldc, const int8_t* a, int64_t lda, const int8_t* b, int64_t ldb,
                                  int32_t m, int32_t n, int32_t k, int32_t trans_b, int32_t clear);
