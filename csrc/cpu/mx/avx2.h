// AVX2: panels of 16 columns, unpacked once for all rows of a tile; four rows at a time fill the registers.
#pragma once

#include "mx/avx2_read.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {
namespace avx2 {

constexpr int kRowsAtOnce = 4;
constexpr int kChunk = 16;              // blocks of a panel: those of 16-bit words and four rows fit the first cache
constexpr int kStepBytes = 4 * kStrip;  // of a panel
template <int kFormat>
constexpr int kPanelBytes = kSteps<kFormat> * kStepBytes;  // of a block

// acc[kRows][16] += the rows times a panel.
template <int kFormat, int kRows>
__attribute__((noinline)) void panel_kernel(float* acc, int64_t ld_acc, const Rows<kFormat>& rows, const uint8_t* codes,
                                            const float* factors) {
  constexpr int64_t kStride = kChunk * kSteps<kFormat> * 4;  // known here, as offsets then need no arithmetic
  for (int64_t b = 0; b < rows.blocks; ++b, codes += kPanelBytes<kFormat>, factors += kStrip) {
    const uint8_t* a = rows.at(0, b);
    __m256i sums[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] = sums[r][1] =
          two_slices<kFormat> ? _mm256_setzero_si256() : _mm256_set1_epi32(rows.bias[r * kChunk + b]);
    }
#pragma GCC unroll 4
    for (int step = 0; step < kSteps<kFormat>; ++step) {
      const __m256i* w = reinterpret_cast<const __m256i*>(codes + step * kStepBytes);
      const __m256i w0 = _mm256_load_si256(w), w1 = _mm256_load_si256(w + 1);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i four = broadcast_4(a + r * kStride + 4 * step);
        sums[r][0] = add<kFormat>(sums[r][0], multiply<kFormat>(w0, four));
        sums[r][1] = add<kFormat>(sums[r][1], multiply<kFormat>(w1, four));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m256 fa = _mm256_set1_ps(rows.factor[r * kChunk + b]);
      for (int h = 0; h < 2; ++h) {
        float* at = acc + r * ld_acc + 8 * h;
        const __m256 scale = _mm256_mul_ps(fa, _mm256_load_ps(factors + 8 * h));
        _mm256_storeu_ps(at, add_term<kFormat>(_mm256_loadu_ps(at), sums[r][h], scale));
      }
    }
  }
}

// A strip of W as a panel; `ahead`: bytes from a column's codes to those of the next strip, 0 for the last.
template <int kFormat>
void unpack_panel(const StripRows& rows, int blocks, int64_t ahead, uint8_t* out) {
  constexpr int kPerLine = 4;  // blocks in a line of the cache
  for (int b = 0; b < blocks; ++b, out += kPanelBytes<kFormat>) {
    const int64_t at = int64_t(b) * (kBlock / 2);
    if (b % kPerLine == 0) {
      for (int c = 0; c < kStrip; ++c) {
        _mm_prefetch(reinterpret_cast<const char*>(rows.codes[c] + ahead + at), _MM_HINT_T0);
      }
    }
    for (int h = 0; h < 2; ++h) {
      __m256i packed[kOctets], steps[kGroupSteps<kFormat>];
      load_columns(rows.codes + 8 * h, at, packed);
      for (int g = 0; g < kOctets; ++g) {
        unpack_group<kFormat>(packed[g], steps);
        for (int i = 0; i < kGroupSteps<kFormat>; ++i) {
          uint8_t* to = out + (g * kGroupSteps<kFormat> + i) * kStepBytes + 32 * h;
          _mm256_store_si256(reinterpret_cast<__m256i*>(to), steps[i]);
        }
      }
    }
  }
}

// All rows times a panel, in as few groups as there can be, of about the same height.
template <int kFormat>
void multiply_panel(float* acc, int64_t ld_acc, int m, const Rows<kFormat>& rows, const uint8_t* codes,
                    const float* factors) {
  for (int r = 0; r < m;) {
    const int groups = (m - r + kRowsAtOnce - 1) / kRowsAtOnce, height = (m - r + groups - 1) / groups;
    float* at = acc + r * ld_acc;
    switch (height) {
      case 4:
        panel_kernel<kFormat, 4>(at, ld_acc, rows.from(r), codes, factors);
        break;
      case 3:
        panel_kernel<kFormat, 3>(at, ld_acc, rows.from(r), codes, factors);
        break;
      case 2:
        panel_kernel<kFormat, 2>(at, ld_acc, rows.from(r), codes, factors);
        break;
      default:
        panel_kernel<kFormat, 1>(at, ld_acc, rows.from(r), codes, factors);
    }
    r += height;
  }
}

inline void copy_sums(float* to, int64_t ld_to, const float* from, int64_t ld_from, int m, int n) {
  for (int r = 0; r < m; ++r) std::memcpy(to + r * ld_to, from + r * ld_from, n * sizeof(float));
}

template <int kFormat>
int accumulate_panels(const MxTile& given) {
  constexpr int kRowChunk = 256;
  MxTile tile = given;
  tile.clear = false;
  if (given.clear) clear_sums(tile.acc, tile.ld_acc, tile.m, tile.n);
  const int row_chunk = std::min(tile.m, kRowChunk);
  const size_t cells = size_t(kChunk) * row_chunk;
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(cells * (kSteps<kFormat> * 4 + sizeof(int32_t) + sizeof(float)) +
                       kChunk * (kPanelBytes<kFormat> + kStrip * sizeof(float)) +
                       size_t(row_chunk) * kStrip * sizeof(float) + 6 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  Rows<kFormat> rows;
  rows.codes = scratch.take<uint8_t>(cells * kSteps<kFormat> * 4);
  rows.bias = scratch.take<int32_t>(cells);
  rows.factor = scratch.take<float>(cells);
  rows.room = kChunk;
  uint8_t* codes = scratch.take<uint8_t>(kChunk * kPanelBytes<kFormat>);
  float* factors = scratch.take<float>(kChunk * kStrip);
  float* edge = scratch.take<float>(size_t(row_chunk) * kStrip);  // sums of a narrow strip

  for (int first = 0; first < tile.blocks(); first += kChunk) {
    const int blocks = std::min(kChunk, tile.blocks() - first);
    rows.blocks = blocks;
    for (int row = 0; row < tile.m; row += row_chunk) {
      const int m = std::min(row_chunk, tile.m - row);
      const int32_t largest_a = cut_rows<kFormat>(tile, row, m, first, rows);
      for (int col = 0; col < tile.n; col += kStrip) {
        const int n = std::min(kStrip, tile.n - col);
        const StripRows strip(tile, col, n, first);
        const int32_t largest_w = read_strip_scales(strip, blocks, factors);
        if (may_fuse<kFormat> && !fused_is_exact(largest_a, largest_w)) {
          const int status = portable_accumulate<kFormat>(part<kFormat>(tile, row, m, col, n, first, blocks));
          if (status != kOk) return status;
          continue;
        }
        unpack_panel<kFormat>(strip, blocks, col + kStrip < tile.n ? kStrip * tile.ldw : 0, codes);
        float* acc = tile.acc + row * tile.ld_acc + col;
        if (n < kStrip) copy_sums(edge, kStrip, acc, tile.ld_acc, m, n);
        if (n < kStrip) {
          multiply_panel<kFormat>(edge, kStrip, m, rows, codes, factors);
          copy_sums(acc, tile.ld_acc, edge, kStrip, m, n);
        } else {
          multiply_panel<kFormat>(acc, tile.ld_acc, m, rows, codes, factors);
        }
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
