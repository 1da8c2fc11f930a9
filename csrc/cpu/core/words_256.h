// AVX2: sums of products of 16-bit words, two products to a 32-bit lane, and of float32; slices of windows as words.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/isa.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

constexpr int kTileRowsAvx2 = 6;  // with two vectors of columns they fill the registers

// Where the rows of a product are, in elements of 32 bits: row r's step s at from[r * ld + s * step].
template <class T>
struct TileRows {
  const T* from;
  int64_t ld, step;
};

// Calls each(std::integral_constant<int, n>, row) for tiles of n = 6, 4 or 2 rows; the last has one row too many where
// `rows` is odd.
template <class Each>
KF_INLINE void in_tiles(int rows, Each each) {
  int row = 0;
  for (; rows - row > 4; row += 6) each(std::integral_constant<int, 6>(), row);
  if (rows - row > 2) {
    each(std::integral_constant<int, 4>(), row);
  } else if (rows - row > 0) {
    each(std::integral_constant<int, 2>(), row);
  }
}

KF_INLINE __m256i load_words(const int32_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }

// Sums of one row. A struct of vectors, and sums in place: GCC 12 keeps arrays of sums in memory, and copies what
// intrinsics add.
struct RowOfPairs {
  __m256i first, second;
  KF_INLINE RowOfPairs() : first(_mm256_setzero_si256()), second(_mm256_setzero_si256()) {}
  static KF_INLINE void add(__m256i& total, __m256i a, __m256i b) {
    __m256i product;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(total), "=&x"(product) : "x"(a), "x"(b));
  }
  KF_INLINE void add(const int32_t* a, __m256i b0, __m256i b1) {
    const __m256i pair = _mm256_set1_epi32(*a);
    add(first, pair, b0);
    add(second, pair, b1);
  }
  KF_INLINE void finish(__m256i (&total)[2]) const {
    total[0] = first;
    total[1] = second;
  }
};

// total[r][.] = the sum over steps of pair products, row r's pair with 16 pairs of columns, `ld` from step to step.
// Modulo 2^32.
template <int kRows>
KF_INLINE void multiply_tile(const TileRows<int32_t>& a, const int32_t* b, int64_t ld, int64_t steps,
                             __m256i (&total)[kRows][2]) {
  static_assert(kRows % 2 == 0 && kRows <= kTileRowsAvx2);
  RowOfPairs r0, r1, r2, r3, r4, r5;
  const int32_t *at = a.from, *const end = b + ld * steps;
  for (; b != end; b += ld, at += a.step) {
    const __m256i b0 = load_words(b), b1 = load_words(b + 8);
    r0.add(at, b0, b1);
    r1.add(at + a.ld, b0, b1);
    if (kRows > 2) r2.add(at + 2 * a.ld, b0, b1);
    if (kRows > 2) r3.add(at + 3 * a.ld, b0, b1);
    if (kRows > 4) r4.add(at + 4 * a.ld, b0, b1);
    if (kRows > 4) r5.add(at + 5 * a.ld, b0, b1);
  }
  r0.finish(total[0]);
  r1.finish(total[1]);
  if constexpr (kRows > 2) {
    r2.finish(total[2]);
    r3.finish(total[3]);
  }
  if constexpr (kRows > 4) {
    r4.finish(total[4]);
    r5.finish(total[5]);
  }
}

// The same of float32, in ascending order, each product and sum rounded once.
template <int kRows>
KF_INLINE void multiply_tile(const TileRows<float>& a, const float* b, int64_t ld, int64_t steps,
                             __m256 (&total)[kRows][2]) {
  for (auto& row : total) row[0] = row[1] = _mm256_setzero_ps();
  const float* at = a.from;
  for (int64_t s = 0; s < steps; ++s, b += ld, at += a.step) {
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 value = _mm256_set1_ps(at[r * a.ld]);
      total[r][0] = _mm256_fmadd_ps(value, b0, total[r][0]);
      total[r][1] = _mm256_fmadd_ps(value, b1, total[r][1]);
    }
  }
}

// to[w], word r: word w of from[r].
KF_INLINE void transpose_words_8(const __m128i (&from)[8], __m128i (&to)[8]) {
  __m128i a[8], b[8];
  for (int r = 0; r < 4; ++r) {
    a[2 * r] = _mm_unpacklo_epi16(from[r], from[r + 4]);
    a[2 * r + 1] = _mm_unpackhi_epi16(from[r], from[r + 4]);
  }
  for (int r = 0; r < 4; ++r) {
    b[2 * r] = _mm_unpacklo_epi16(a[r], a[r + 4]);
    b[2 * r + 1] = _mm_unpackhi_epi16(a[r], a[r + 4]);
  }
  for (int r = 0; r < 4; ++r) {
    to[2 * r] = _mm_unpacklo_epi16(b[r], b[r + 4]);
    to[2 * r + 1] = _mm_unpackhi_epi16(b[r], b[r + 4]);
  }
}

KF_INLINE int32_t largest_u16(__m256i words) {
  const __m128i half = _mm_max_epu16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return 0xFFFF ^ (_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi32(-1)))) & 0xFFFF);
}

KF_INLINE __m256 magnitude8(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

// Not below: NaN stays.
KF_INLINE __m256 zero_below8(__m256 x, float least) {
  return _mm256_and_ps(x, _mm256_cmp_ps(magnitude8(x), _mm256_set1_ps(least), _CMP_NLT_UQ));
}
// x * 2^places, infinite beyond the range, +0 below 2^-100; x is 0 or at least 1 in magnitude.
KF_INLINE __m256 scaled8(__m256 x, __m256i places) {
  const __m256i bits = _mm256_castps_si256(x), sign = _mm256_and_si256(bits, _mm256_set1_epi32(INT32_MIN));
  const __m256i magnitude = _mm256_xor_si256(bits, sign);
  const __m256i field = _mm256_add_epi32(_mm256_srli_epi32(magnitude, 23), places);
  const __m256i beyond = _mm256_cmpgt_epi32(field, _mm256_set1_epi32(254));
  const __m256i infinity = _mm256_or_si256(sign, _mm256_set1_epi32(0x7F800000));
  const __m256i moved = _mm256_blendv_epi8(_mm256_add_epi32(bits, _mm256_slli_epi32(places, 23)), infinity, beyond);
  const __m256i kept = _mm256_andnot_si256(_mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256()),
                                           _mm256_cmpgt_epi32(field, _mm256_set1_epi32(127 - 100 - 1)));
  return _mm256_castsi256_ps(_mm256_and_si256(kept, moved));
}

KF_INLINE __m256i high_slice(__m256i q) { return _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8); }
KF_INLINE __m256i low_slice(__m256i q, __m256i high) { return _mm256_sub_epi32(q, _mm256_slli_epi32(high, 8)); }
KF_INLINE __m256i paired(__m256i first, __m256i second) {
  return _mm256_blend_epi16(first, _mm256_slli_epi32(second, 16), 0xAA);
}
// 16 words of two vectors of integers.
KF_INLINE __m256i words_of(__m256i first, __m256i second) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
}
KF_INLINE void store_words(void* to, __m256i x) { _mm256_store_si256(static_cast<__m256i*>(to), x); }

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
