// What the C code generated for the CPU backend may call.
//
// Header-only C++17. Flags: -O3 -std=c++17 -ffp-contract=off -fwrapv -fno-strict-aliasing; no -march is needed, the
// engines carry their own targets and one is chosen at run time (environment variable KERNELFORGE_CPU_ISA =
// amx | avx512vnni | avx512bf16 | avx2 | neon | portable overrides the choice). All engines give the same bits.
#pragma once

#include "kf_gemm_s8.h"
#include "kf_mx_amx.h"
#include "kf_mx_avx2.h"
#include "kf_mx_avx512bf16.h"
#include "kf_mx_gemv.h"
#include "kf_mx_neon.h"
#include "kf_mx_portable.h"
#include "kf_mx_vnni.h"
#include "kf_scalar.h"

namespace kf {
namespace {

template <int kFormat>
inline int accumulate(Isa isa, const MxTile& tile) {
#if defined(KF_X86)
  if (isa >= Isa::kAvx512Bf16 && tile.m <= kGemvRows) return gemv_accumulate<kFormat>(tile);
#endif
  switch (isa) {
#if defined(KF_X86)
    case Isa::kAmx:
      return amx_accumulate<kFormat>(tile);
    case Isa::kAvx512Vnni:
      return sliced_accumulate<VnniEngine, kFormat>(tile);
    case Isa::kAvx512Bf16:
      return bf16_accumulate<kFormat>(tile);
    case Isa::kAvx2:
      return sliced_accumulate<Avx2Engine, kFormat>(tile);
#elif defined(KF_AARCH64)
    case Isa::kNeon:
      return sliced_accumulate<NeonEngine, kFormat>(tile);
#endif
    case Isa::kPortable:
      return portable_accumulate<kFormat>(tile);
    default:
      return kIsaMissing;
  }
}

// Inlined, here and below, so that a kernel's constant a_format leaves one format's engines to compile, not four.
__attribute__((always_inline)) inline int accumulate(Isa isa, int a_format, const MxTile& tile) {
  if (tile.m < 0 || tile.n < 0 || tile.k < 0 || tile.k % kBlock != 0) return kBadArgument;
  if (a_format < kE2m1 || a_format > kBf16) return kBadArgument;
  if (isa == Isa::kMissing) return kIsaMissing;
  if (tile.m == 0 || tile.n == 0 || tile.k == 0) return kOk;
  switch (a_format) {
    case kE2m1:
      return accumulate<kE2m1>(isa, tile);
    case kE4m3E8m0:
      return accumulate<kE4m3E8m0>(isa, tile);
    case kE4m3F32:
      return accumulate<kE4m3F32>(isa, tile);
    default:
      return accumulate<kBf16>(isa, tile);
  }
}

inline int gemm_s8(Isa isa, const GemmS8& g) {
  if (g.m < 0 || g.n < 0 || g.k < 0) return kBadArgument;
  switch (isa) {
#if defined(KF_X86)
    case Isa::kAmx:
      return gemm_s8_amx(g);
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Bf16:
      return gemm_s8_vnni(g);
    case Isa::kAvx2:
      return gemm_s8_avx2(g);
#elif defined(KF_AARCH64)
    case Isa::kNeon:
      return gemm_s8_neon(g);
#endif
    case Isa::kPortable:
      return gemm_s8_portable(g);
    default:
      return kIsaMissing;
  }
}

}  // namespace
}  // namespace kf

extern "C" __attribute__((visibility("hidden"), always_inline)) inline int32_t kf_mx_block_accumulate(
    float* acc, int64_t ld_acc, const void* a, int64_t lda, const void* a_scale, int64_t ld_a_scale, const uint8_t* w,
    int64_t ldw, const uint8_t* w_scale, int64_t ld_w_scale, int32_t m, int32_t n, int32_t k, int32_t a_format) {
  const kf::MxTile tile{acc, ld_acc, a, lda, a_scale, ld_a_scale, w, ldw, w_scale, ld_w_scale, m, n, k};
  return kf::accumulate(kf::current_isa(), a_format, tile);
}

extern "C" __attribute__((visibility("hidden"))) inline int32_t kf_gemm_s8(int32_t* c, int64_t ldc, const int8_t* a,
                                                                           int64_t lda, const int8_t* b, int64_t ldb,
                                                                           int32_t m, int32_t n, int32_t k,
                                                                           int32_t trans_b, int32_t clear) {
  return kf::gemm_s8(kf::current_isa(), kf::GemmS8{c, ldc, a, lda, b, ldb, m, n, k, trans_b != 0, clear != 0});
}
