// Every engine of the exact int8 dot, and the choice among them.
#pragma once

#include "gemm/s8.h"
#include "gemm/s8_amx.h"
#include "gemm/s8_avx2.h"

namespace kf {
namespace {

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
