// AVX2: vpmaddubsw of unsigned w + 12 with signed slices. A pair sum is at most 2 * 24 * 128, so four of them fit in
// 16 bits, and no saturation ever happens.
#pragma once

#include "kf_mx_slices.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

struct Avx2Engine {
  static constexpr bool kEvenRows = true;
  static constexpr int kOffset = 12;

  template <int kFormat>
  static int32_t slice(const MxTile& tile, int row, int m, int first, int blocks, const SlicedRows& out) {
    return slice_rows<kFormat, kOffset>(tile, row, m, first, blocks, out);
  }

  static int32_t unpack(const MxTile& tile, int col, int n, int first, int blocks, uint8_t* codes, float* factors) {
    return unpack_strip<kOffset>(tile, col, n, first, blocks, codes, factors);
  }

  // dots[r][h] += the block's slices times eight columns (h: which half of the strip).
  template <int kRows>
  static KF_INLINE void dot(const int8_t* slices, int64_t lda, const uint8_t* codes, __m256i dots[kRows][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; ++half) {
      __m256i pairs[kRows][2];
      for (int r = 0; r < kRows; ++r) pairs[r][0] = pairs[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (int j = 4 * half; j < 4 * half + 4; ++j) {
        const __m256i* w = reinterpret_cast<const __m256i*>(codes + j * 4 * kStrip);
        const __m256i w0 = _mm256_load_si256(w), w1 = _mm256_load_si256(w + 1);
        for (int r = 0; r < kRows; ++r) {
          int32_t four;
          std::memcpy(&four, slices + r * lda + 4 * j, 4);
          const __m256i a = _mm256_set1_epi32(four);
          pairs[r][0] = _mm256_add_epi16(pairs[r][0], _mm256_maddubs_epi16(w0, a));
          pairs[r][1] = _mm256_add_epi16(pairs[r][1], _mm256_maddubs_epi16(w1, a));
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int h = 0; h < 2; ++h) dots[r][h] = _mm256_add_epi32(dots[r][h], _mm256_madd_epi16(pairs[r][h], ones));
      }
    }
  }

  template <int kFormat, int kRows>
  static KF_INLINE void strip(float* acc, int64_t ld_acc, const SlicedRows& rows, const uint8_t* codes,
                              const float* factors) {
    const int64_t blocks = rows.blocks, lda = blocks * kBlock;
    for (int64_t b = 0; b < blocks; ++b, codes += kStripBytes, factors += kStrip) {
      __m256i dots[kRows][2];
      for (int r = 0; r < kRows; ++r) {
        const __m256i bias = _mm256_set1_epi32(rows.bias[r * blocks + b]);
        dots[r][0] = dots[r][1] = two_slices<kFormat> ? _mm256_setzero_si256() : bias;
      }
      if (two_slices<kFormat>) {
        dot<kRows>(rows.hi + b * kBlock, lda, codes, dots);
        for (int r = 0; r < kRows; ++r) {
          const __m256i bias = _mm256_set1_epi32(rows.bias[r * blocks + b]);
          for (int h = 0; h < 2; ++h) dots[r][h] = _mm256_add_epi32(_mm256_slli_epi32(dots[r][h], 8), bias);
        }
      }
      dot<kRows>(rows.lo + b * kBlock, lda, codes, dots);
      for (int r = 0; r < kRows; ++r) {
        const __m256 fa = _mm256_set1_ps(rows.factor[r * blocks + b]);
        for (int h = 0; h < 2; ++h) {
          float* at = acc + r * ld_acc + h * 8;
          const __m256 scale = _mm256_mul_ps(fa, _mm256_load_ps(factors + h * 8));
          const __m256 value = _mm256_cvtepi32_ps(dots[r][h]), sum = _mm256_loadu_ps(at);
          _mm256_storeu_ps(at, may_fuse<kFormat> ? _mm256_fmadd_ps(value, scale, sum)
                                                 : _mm256_add_ps(sum, _mm256_mul_ps(value, scale)));
        }
      }
    }
  }

  template <int kFormat, int kRows>
  static void kernel(float* acc, int64_t ld_acc, const SlicedRows& rows, const SlicedPanel& panel) {
    if (panel.clear) clear_sums(acc, ld_acc, kRows, kPanel);
    constexpr int kStep = kRows == 1 ? 1 : 2;  // sixteen registers hold two rows
    for (int r = 0; r < kRows; r += kStep) {
      for (int s = 0; s < 2; ++s) {
        strip<kFormat, kStep>(acc + r * ld_acc + s * kStrip, ld_acc, rows.from(r),
                              panel.codes + s * panel.blocks * kStripBytes, panel.factor + s * panel.blocks * kStrip);
      }
    }
  }
};

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
