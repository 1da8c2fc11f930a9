// A few rows of A on AVX2: bound by reading W, so its codes are unpacked to registers, eight columns at a time, and the
// sums stay there over all of k.
#pragma once

#include "mx/avx2_read.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {
namespace avx2 {

constexpr int kGemvRows = 4;

// The first `n` lanes of eight.
KF_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// acc[kRows][n of 8] += the rows times eight columns, whose factors lie 16 apart. `ahead`: bytes from a column's codes
// to those of the column eight further, 0 for the last.
template <int kFormat, int kRows>
void gemv_columns(const uint8_t* const columns[8], const float* factors, const Rows<kFormat>& rows, int64_t ahead,
                  int n, float* acc, int64_t ld_acc, bool clear) {
  constexpr int kPrefetch = 512, kPerLine = 4;
  const int64_t lda = rows.room * kSteps<kFormat> * 4, column_bytes = rows.blocks * (kBlock / 2);
  const __m256i inside = first_lanes(n);
  __m256 sums[kRows];
  for (int r = 0; r < kRows; ++r) {
    sums[r] = clear ? _mm256_setzero_ps() : _mm256_maskload_ps(acc + r * ld_acc, inside);
  }
  for (int64_t b = 0; b < rows.blocks; ++b) {
    const int64_t at = b * (kBlock / 2);
    if (b % kPerLine == 0) {
      const int64_t next = at + kPrefetch < column_bytes ? at + kPrefetch : ahead + (at + kPrefetch - column_bytes);
      for (int c = 0; c < 8; ++c) _mm_prefetch(reinterpret_cast<const char*>(columns[c] + next), _MM_HINT_T0);
    }
    __m256i packed[kOctets], dots[kRows];
    load_columns(columns, at, packed);
    for (int r = 0; r < kRows; ++r) {
      dots[r] = two_slices<kFormat> ? _mm256_setzero_si256() : _mm256_set1_epi32(rows.bias[r * rows.room + b]);
    }
    const uint8_t* a = rows.at(0, b);
#pragma GCC unroll 4
    for (int g = 0; g < kOctets; ++g) {
      __m256i steps[kGroupSteps<kFormat>];
      unpack_group<kFormat>(packed[g], steps);
#pragma GCC unroll 4
      for (int i = 0; i < kGroupSteps<kFormat>; ++i) {
        const int step = g * kGroupSteps<kFormat> + i;
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          dots[r] = add<kFormat>(dots[r], multiply<kFormat>(steps[i], broadcast_4(a + r * lda + 4 * step)));
        }
      }
    }
    const __m256 fw = _mm256_load_ps(factors + b * kStrip);
    for (int r = 0; r < kRows; ++r) {
      const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(rows.factor[r * rows.room + b]), fw);
      sums[r] = add_term<kFormat>(sums[r], dots[r], scale);
    }
  }
  for (int r = 0; r < kRows; ++r) _mm256_maskstore_ps(acc + r * ld_acc, inside, sums[r]);
}

// Requires m <= kGemvRows.
template <int kFormat>
int accumulate_few_rows(const MxTile& tile) {
  constexpr int kChunk = 512;
  const int chunk = std::min(tile.blocks(), kChunk);
  const size_t cells = size_t(tile.m) * chunk;
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(cells * (kSteps<kFormat> * 4 + sizeof(int32_t) + sizeof(float)) +
                       size_t(chunk) * kStrip * sizeof(float) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  Rows<kFormat> rows;
  rows.codes = scratch.take<uint8_t>(cells * kSteps<kFormat> * 4);
  rows.bias = scratch.take<int32_t>(cells);
  rows.factor = scratch.take<float>(cells);
  rows.room = chunk;
  float* factors = scratch.take<float>(size_t(chunk) * kStrip);
  constexpr decltype(&gemv_columns<kFormat, 1>) kKernels[kGemvRows] = {
      gemv_columns<kFormat, 1>, gemv_columns<kFormat, 2>, gemv_columns<kFormat, 3>, gemv_columns<kFormat, 4>};
  for (int first = 0; first < tile.blocks(); first += chunk) {
    const int blocks = std::min(chunk, tile.blocks() - first);
    rows.blocks = blocks;
    const int32_t largest_a = cut_rows<kFormat>(tile, 0, tile.m, first, rows);
    for (int col = 0; col < tile.n; col += kStrip) {
      const int n = std::min(kStrip, tile.n - col);
      const StripRows strip(tile, col, n, first);
      const int32_t largest_w = read_strip_scales(strip, blocks, factors);
      if (may_fuse<kFormat> && !fused_is_exact(largest_a, largest_w)) {
        const int status = portable_accumulate<kFormat>(part<kFormat>(tile, 0, tile.m, col, n, first, blocks));
        if (status != kOk) return status;
        continue;
      }
      for (int c = 0; c < n; c += 8) {
        const int64_t ahead = col + c + 8 < tile.n ? 8 * tile.ldw : 0;
        kKernels[tile.m - 1](strip.codes + c, factors + c, rows, ahead, std::min(n - c, 8), tile.acc + col + c,
                             tile.ld_acc, tile.clear && first == 0);
      }
    }
  }
  return kOk;
}

}  // namespace avx2
}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
