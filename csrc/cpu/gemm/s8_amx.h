// The exact int8 dot by AMX-INT8.
#pragma once

#include "core/amx_tiles.h"
#include "gemm/s8.h"

#if defined(KF_X86)
KF_TARGET_BEGIN(
    "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")
namespace kf {
namespace {

struct AmxGemm {
  using T = int8_t;
  static constexpr int kGroup = 4, kRows = 32, kFlip = 0;
  static void kernel(const GemmOperands<T>& x, int32_t* out) {
    const T* below = x.a + int64_t(16) * x.depth;
    const T* b = x.b;
    const int64_t second = int64_t(x.depth) * 16;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < x.depth; i += kGemmDepth, b += kGemmDepth * 16) {
      _tile_loadd(4, x.a + i, x.depth);
      _tile_loadd(6, b, kGemmDepth);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, b + second, kGemmDepth);
      _tile_dpbssd(1, 4, 7);
      _tile_loadd(5, below + i, x.depth);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    constexpr int64_t kLd = kGemmColumns * sizeof(int32_t);
    _tile_stored(0, out, kLd);
    _tile_stored(1, out + 16, kLd);
    _tile_stored(2, out + 16 * kGemmColumns, kLd);
    _tile_stored(3, out + 16 * kGemmColumns + 16, kLd);
  }
};

inline int gemm_s8_amx(const GemmS8& g) {
  const AmxTiles tiles;
  return gemm_s8_tiles<AmxGemm>(g);
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
