// AVX512-BF16: vdpbf16ps on folded operands. It rounds twice per pair of products, but every value is an exact
// multiple of the block's scale, below 2^24 of them, so both roundings are exact; the block's sum starts at zero and
// is added to the accumulator once.
#pragma once

#include "kf_mx_panels.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prefer-vector-width=512")
namespace kf {
namespace {

// kRows x 32 columns over one chunk; `clear`: from zero. a: [rows][blocks][32], w: [2][blocks][16 pairs][16][2].
// between(quarter) is called before each quarter of a block.
template <int kFormat, int kRows, class Between>
void bf16_kernel(float* acc, int64_t ld_acc, const uint16_t* a, const float* factor, int64_t ld_factor,
                 const uint16_t* w, int64_t blocks, bool clear, const Between& between) {
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
      if (p % 4 == 0) between(p / 4);
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

template <int kFormat>
int bf16_accumulate(const MxTile& tile) {
  const int chunk = std::min(tile.blocks(), Panel::kBlocks);
  const size_t cells = size_t(chunk) * std::min(tile.m, Panel::kRows);
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(cells * (2 * kBlock + sizeof(float)) + 2 * PanelFolder::words(chunk) * sizeof(uint16_t) +
                       kPanelRows * kPanel * sizeof(float) + 5 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  uint16_t* a = scratch.take<uint16_t>(cells * kBlock);
  float* factor = scratch.take<float>(cells);
  uint16_t* w = scratch.take<uint16_t>(PanelFolder::words(chunk));
  uint16_t* next_w = scratch.take<uint16_t>(PanelFolder::words(chunk));
  float* edge = scratch.take<float>(kPanelRows * kPanel);
  PanelFolder folder;
  PanelPrefetch prefetch;
  int32_t largest_a = 0;
  Panel panel = Panel::at(tile, 0, 0, 0);
  folder.start(tile, panel, w);
  while (panel.blocks > 0) {
    const int first = panel.first, blocks = panel.blocks, row = panel.row, m = panel.m, col = panel.col, n = panel.n;
    const Panel next = panel.next(tile);
    if (col == 0) largest_a = fold_rows<kFormat>(tile, row, m, first, FoldedRows<1>{a, m, blocks, blocks}, factor);
    const bool exact = folding_is_exact<kFormat>(largest_a, folder.finish());
    folder.start(tile, next, next_w);
    if (exact) {
      prefetch.start(tile, next.next(tile));
      const int groups = (m + kPanelRows - 1) / kPanelRows;
      const int idle = groups >= 8 ? 3 : groups >= 4 ? 1 : 0;  // bits of a quarter's number: those set are left alone
      const auto between = [&](int quarter) KF_INLINE_LAMBDA {
        if ((quarter & idle) != 0) return;
        folder.step();
        prefetch.step();
      };
      const int64_t lda = int64_t(blocks) * kBlock;
      const bool clear = tile.clear && first == 0;
      for_row_groups<false>(tile.acc + row * tile.ld_acc + col, tile.ld_acc, m, n, edge,
                            [&](auto group, int r, float* out, int64_t ld_out) {
                              bf16_kernel<kFormat, decltype(group)::value>(out, ld_out, a + r * lda, factor + r, m, w,
                                                                           blocks, clear, between);
                            });
    } else {
      const int status = portable_accumulate<kFormat>(part<kFormat>(tile, row, m, col, n, first, blocks));
      if (status != kOk) return status;
    }
    panel = next;
    std::swap(w, next_w);
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
