// AVX512-VNNI: int8 dots of unsigned w + 12 with signed slices, 16 columns to a register.
#pragma once

#include "mx/avx512.h"
#include "mx/slices.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

constexpr int kVnniOffset = 12;

KF_INLINE __m512i unsigned_codes(__m512i nibbles) {
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  return _mm512_shuffle_epi8(table, nibbles);
}

KF_INLINE void unpack_strip_block(const StripRows& rows, int block, __m512i codes[8]) {
  __m512i packed[4];
  load_strip_block(rows, block, packed);
  const __m512i low = _mm512_set1_epi8(15);
  for (int j = 0; j < 4; ++j) {
    codes[j] = unsigned_codes(_mm512_and_si512(packed[j], low));
    codes[4 + j] = unsigned_codes(_mm512_and_si512(_mm512_srli_epi16(packed[j], 4), low));
  }
}

KF_INLINE __m512i four_codes(const int8_t* from) {
  int32_t bits;
  std::memcpy(&bits, from, 4);
  return _mm512_set1_epi32(bits);
}

template <int kFormat>
KF_INLINE __m512 add_term(__m512 acc, __m512i integer, __m512 scale) {
  const __m512 value = _mm512_cvtepi32_ps(integer);
  if (may_fuse<kFormat>) return _mm512_fmadd_ps(value, scale, acc);
  return _mm512_add_ps(acc, _mm512_mul_ps(value, scale));
}

struct VnniEngine {
  static constexpr bool kEvenRows = false;

  template <int kFormat>
  static KF_INLINE float slice_one(const MxTile& tile, int row, int block, const SlicedRows& out, int64_t at) {
    __m128i* lo = reinterpret_cast<__m128i*>(out.lo + at * kBlock);
    __m128i* hi = reinterpret_cast<__m128i*>(out.hi + at * kBlock);
    float factor;
    int32_t sum;
    if constexpr (kFormat == kE2m1) {
      const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
      const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a_block<kFormat>(tile, row, block)));
      const __m128i low = _mm_set1_epi8(15);
      const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(packed, low));
      const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(packed, 4), low));
      _mm_storeu_si128(lo, even);
      _mm_storeu_si128(lo + 1, odd);
      const __m128i shifted = _mm_add_epi8(_mm_add_epi8(even, odd), _mm_set1_epi8(24));  // each in [0, 48]
      const __m128i halves = _mm_sad_epu8(shifted, _mm_setzero_si128());
      sum = _mm_cvtsi128_si32(halves) + _mm_extract_epi32(halves, 2) - 24 * 16;
      factor = 0.25f * read_scale(static_cast<const uint8_t*>(a_scale_row<kFormat>(tile, row))[block]);
    } else {
      const WindowBlock window = load_window<kFormat>(tile, row, block);
      const __m512i even = window_integers(even_floats(window.words), window.exponent);
      const __m512i odd = window_integers(odd_floats(window.words), window.exponent);
      const __m512i half = _mm512_set1_epi32(128);
      _mm_storeu_si128(lo, _mm512_cvtepi32_epi8(even));
      _mm_storeu_si128(lo + 1, _mm512_cvtepi32_epi8(odd));
      _mm_storeu_si128(hi, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(even, half), 8)));
      _mm_storeu_si128(hi + 1, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(odd, half), 8)));
      sum = _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd));
      factor = window.factor;
    }
    out.bias[at] = -kVnniOffset * sum;
    out.factor[at] = factor;
    return factor;
  }

  template <int kFormat>
  static int32_t slice(const MxTile& tile, int row, int m, int first, int blocks, const SlicedRows& out) {
    LargestFactor largest;
    for (int r = 0; r < m; ++r) {
      for (int b = 0; b < blocks; ++b) {
        largest.add(slice_one<kFormat>(tile, row + r, first + b, out, int64_t(r) * blocks + b));
      }
    }
    return largest.bits;
  }

  static int32_t unpack(const MxTile& tile, int col, int n, int first, int blocks, uint8_t* codes, float* factors) {
    const StripRows rows(tile, col, n, first);
    StripScales scales(rows, blocks);
    for (int b = 0; b < blocks; ++b) {
      __m512i out[8];
      unpack_strip_block(rows, b, out);
      for (int j = 0; j < 8; ++j) _mm512_store_si512(codes + int64_t(b) * kStripBytes + j * 64, out[j]);
      _mm512_store_ps(factors + b * kStrip, read_scales(scales.bytes(b)));
    }
    return scales.largest_bits();
  }

  template <int kFormat, int kRows>
  static void kernel(float* acc, int64_t ld_acc, const SlicedRows& rows, const SlicedPanel& panel) {
    const int64_t blocks = rows.blocks, lda = blocks * kBlock;
    __m512 sums[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] = panel.clear ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + r * ld_acc);
      sums[r][1] = panel.clear ? _mm512_setzero_ps() : _mm512_loadu_ps(acc + r * ld_acc + kStrip);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const uint8_t* codes0 = panel.codes + b * kStripBytes;
      const uint8_t* codes1 = codes0 + blocks * kStripBytes;
      __m512i dots[kRows][2];
      const auto accumulate = [&](const int8_t* slices) KF_INLINE_LAMBDA {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
          const __m512i w0 = _mm512_load_si512(codes0 + j * 64), w1 = _mm512_load_si512(codes1 + j * 64);
#pragma GCC unroll 6
          for (int r = 0; r < kRows; ++r) {
            const __m512i a = four_codes(slices + r * lda + b * kBlock + 4 * j);
            dots[r][0] = _mm512_dpbusd_epi32(dots[r][0], w0, a);
            dots[r][1] = _mm512_dpbusd_epi32(dots[r][1], w1, a);
          }
        }
      };
      if (two_slices<kFormat>) {
        for (int r = 0; r < kRows; ++r) dots[r][0] = dots[r][1] = _mm512_setzero_si512();
        accumulate(rows.hi);
        for (int r = 0; r < kRows; ++r) {
          const __m512i bias = _mm512_set1_epi32(rows.bias[r * blocks + b]);
          for (int c = 0; c < 2; ++c) dots[r][c] = _mm512_add_epi32(_mm512_slli_epi32(dots[r][c], 8), bias);
        }
      } else {
        for (int r = 0; r < kRows; ++r) dots[r][0] = dots[r][1] = _mm512_set1_epi32(rows.bias[r * blocks + b]);
      }
      accumulate(rows.lo);
      const __m512 fw0 = _mm512_load_ps(panel.factor + b * kStrip);
      const __m512 fw1 = _mm512_load_ps(panel.factor + (blocks + b) * kStrip);
      for (int r = 0; r < kRows; ++r) {
        const __m512 fa = _mm512_set1_ps(rows.factor[r * blocks + b]);
        sums[r][0] = add_term<kFormat>(sums[r][0], dots[r][0], _mm512_mul_ps(fa, fw0));
        sums[r][1] = add_term<kFormat>(sums[r][1], dots[r][1], _mm512_mul_ps(fa, fw1));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      _mm512_storeu_ps(acc + r * ld_acc, sums[r][0]);
      _mm512_storeu_ps(acc + r * ld_acc + kStrip, sums[r][1]);
    }
  }
};

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
