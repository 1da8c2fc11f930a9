// Every engine of the MX block accumulation, and the choice among them.
#pragma once

#include "mx/amx.h"
#include "mx/avx2.h"
#include "mx/avx2_gemv.h"
#include "mx/avx512bf16.h"
#include "mx/gemv.h"
#include "mx/neon.h"
#include "mx/portable.h"
#include "mx/vnni.h"

namespace kf {
namespace {

template <int kFormat>
inline Isa mx_isa() {
  return two_slices<kFormat> ? current_isa_for_two_slices() : current_isa();
}

// Status of acc += A W^T over the tile by one engine.
template <int kFormat>
inline int accumulate(Isa isa, const MxTile& tile) {
  if (tile.m < 0 || tile.n < 0 || tile.k < 0 || tile.k % kBlock != 0) return kBadArgument;
  if (isa == Isa::kMissing) return kIsaMissing;
  if (tile.m == 0 || tile.n == 0) return kOk;
  if (tile.k == 0) {
    if (tile.clear) clear_sums(tile.acc, tile.ld_acc, tile.m, tile.n);
    return kOk;
  }
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
      return tile.m <= avx2::kGemvRows ? avx2::accumulate_few_rows<kFormat>(tile)
                                       : avx2::accumulate_panels<kFormat>(tile);
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

}  // namespace
}  // namespace kf

// The function that generated code calls for one format of A; a unit holds one.
#define KF_MX_BLOCK_ACCUMULATE(name, format)                                                                           \
  int32_t name(float* acc, int64_t ld_acc, const void* a, int64_t lda, const void* a_scale, int64_t ld_a_scale,        \
               const uint8_t* w, int64_t ldw, const uint8_t* w_scale, int64_t ld_w_scale, int32_t m, int32_t n,        \
               int32_t k, int32_t clear) {                                                                             \
    const kf::MxTile tile{acc, ld_acc, a, lda, a_scale, ld_a_scale, w, ldw, w_scale, ld_w_scale, m, n, k, clear != 0}; \
    return kf::accumulate<format>(kf::mx_isa<format>(), tile);                                                         \
  }
