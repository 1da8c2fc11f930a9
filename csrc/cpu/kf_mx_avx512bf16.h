// AVX512-BF16: vdpbf16ps on folded operands. It rounds twice per pair of products, but every value is an exact
// multiple of the block's scale, below 2^24 of them, so both roundings are exact; the block's sum starts at zero and
// is added to the accumulator once.
#pragma once

#include "kf_mx_folded.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prefer-vector-width=512")
namespace kf {
namespace {

// kRows x 32 columns over one chunk; `clear`: from zero. a: [rows][blocks][32], w: [2][blocks][16 pairs][16][2].
template <int kFormat, int kRows>
void bf16_kernel(float* acc, int64_t ld_acc, const uint16_t* a, const float* factor, int64_t ld_factor,
                 const uint16_t* w, int64_t blocks, bool clear) {
  const int64_t lda = blocks * kBlock, second = blocks * kBlock * kStrip;
  __m512 sums[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    sums[r][0] = clear ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + r * ld_acc);
    sums[r][1] = clear ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + r * ld_acc + kStrip);
  }
  for (int64_t b = 0; b < blocks; ++b, w += kBlock * kStrip) {
    __m512 dots[kRows][2];
    for (int r = 0; r < kRows; ++r) dots[r][0] = dots[r][1] = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int p = 0; p < kBlock / 2; ++p) {
      const __m512bh w0 = (__m512bh)_mm512_load_si512(w + p * kBlock);
      const __m512bh w1 = (__m512bh)_mm512_load_si512(w + second + p * kBlock);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        int32_t pair;
        std::memcpy(&pair, a + r * lda + b * kBlock + 2 * p, 4);
        const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
        dots[r][0] = _mm512_dpbf16_ps(dots[r][0], left, w0);
        dots[r][1] = _mm512_dpbf16_ps(dots[r][1], left, w1);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < 2; ++c) {
        __m512 term = dots[r][c];
        if (kFormat == kE4m3F32) term = _mm512_mul_ps(term, _mm512_set1_ps(factor[b * ld_factor + r]));
        sums[r][c] = _mm512_add_ps(sums[r][c], term);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(acc + r * ld_acc, sums[r][0]);
    _mm512_storeu_ps(acc + r * ld_acc + kStrip, sums[r][1]);
  }
}

// Brings part `turn` of `turns` of a panel's packed columns nearer while the panel before it is computed: few bytes of
// each of many rows, which no hardware prefetcher foresees.
KF_INLINE void prefetch_panel(const MxTile& tile, int col, int first, int blocks, int turn, int turns) {
  constexpr int kLine = 64;
  const int n = std::min(kPanel, tile.n - col), each = (n + turns - 1) / turns;
  const int bytes = std::min(blocks, tile.blocks() - first) * (kBlock / 2);
  for (int c = turn * each; c < std::min(n, (turn + 1) * each); ++c) {
    const char* codes = reinterpret_cast<const char*>(tile.w_row(col + c)) + int64_t(first) * (kBlock / 2);
    for (int at = 0; at < bytes; at += kLine) _mm_prefetch(codes + at, _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(tile.w_scale_row(col + c) + first), _MM_HINT_T1);
  }
}

template <int kFormat>
int bf16_accumulate(const MxTile& tile) {
  constexpr int kChunk = 16, kRowChunk = 512;
  const int chunk = std::min(tile.blocks(), kChunk), row_chunk = std::min(tile.m, kRowChunk);
  const size_t cells = size_t(chunk) * row_chunk;
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(cells * (2 * kBlock + sizeof(float)) + size_t(chunk) * 4 * kBlock * kStrip +
                       kPanelRows * kPanel * sizeof(float) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  uint16_t* a = scratch.take<uint16_t>(cells * kBlock);
  float* factor = scratch.take<float>(cells);
  uint16_t* w = scratch.take<uint16_t>(size_t(chunk) * 2 * kBlock * kStrip);
  float* edge = scratch.take<float>(kPanelRows * kPanel);
  for (int first = 0; first < tile.blocks(); first += chunk) {
    const int blocks = std::min(chunk, tile.blocks() - first);
    for (int row = 0; row < tile.m; row += row_chunk) {
      const int m = std::min(row_chunk, tile.m - row);
      const int32_t largest_a = fold_rows<kFormat>(tile, row, m, first, FoldedRows<1>{a, m, blocks, blocks}, factor);
      for (int col = 0; col < tile.n; col += kPanel) {
        const int n = std::min(kPanel, tile.n - col);
        const int second = n > kStrip ? kStrip : 0;  // a lone strip is taken twice, the copy discarded
        int32_t largest_w = fold_strip(tile, col, std::min(n, kStrip), first, blocks, w);
        largest_w = std::max(largest_w, fold_strip(tile, col + second, n > kStrip ? n - kStrip : n, first, blocks,
                                                   w + int64_t(blocks) * kBlock * kStrip));
        if (!folding_is_exact<kFormat>(largest_a, largest_w)) {
          const int status = portable_accumulate<kFormat>(part<kFormat>(tile, row, m, col, n, first, blocks));
          if (status != kOk) return status;
          continue;
        }
        const bool last = col + kPanel >= tile.n;
        const int next_col = last ? 0 : col + kPanel, next_first = last ? first + chunk : first;
        const int turns = (m + kPanelRows - 1) / kPanelRows;
        int turn = 0;
        for_row_groups<false>(tile.acc + row * tile.ld_acc + col, tile.ld_acc, m, n, edge,
                              [&](auto group, int r, float* out, int64_t ld_out) {
                                if (next_first < tile.blocks()) {
                                  prefetch_panel(tile, next_col, next_first, chunk, turn++, turns);
                                }
                                bf16_kernel<kFormat, decltype(group)::value>(
                                    out, ld_out, a + int64_t(r) * blocks * kBlock, factor + r, m, w, blocks,
                                    tile.clear && first == 0);
                              });
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
