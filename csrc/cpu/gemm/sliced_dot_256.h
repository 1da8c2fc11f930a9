// Dots of rows that are cut on the way, with AVX2; included by gemm/sliced_dot.h.
//
// With rows' slices h, m, l and weights' H, M, L, the sums of the two highest ranks only matter as 256 hH + (hM + mH),
// which 32 bits hold: the sum of h (256 H + M) + m H, one vpmaddwd for both. With two slices, l is in m's place.
#pragma once

#include "core/values_256.h"
#include "core/words_256.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

constexpr int kRowBatch256 = 24;  // rows that are cut before they are multiplied
constexpr int kColumns256 = 16;   // of a strip

KF_INLINE int32_t largest_bits_256(__m256i x) {
  const __m128i half = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i quarter = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(quarter, _mm_shuffle_epi32(quarter, 0xB1)));
}

// Rows in pairs of words: (h, m) and (m, l), or (h, l), and the lowest slices side by side.
struct CutRows256 {
  int32_t *high, *middle, *low;
  int32_t exponent[kRowBatch256];
};

// As cut_row, row `at` of the batch; those of an unusable row are zeros.
template <class Rows>
inline void cut_row_256(const typename Rows::Stored* x, int k, int at, CutRows256& out) {
  constexpr int kSlices = Rows::kSlices;
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < k; i += 8) largest = _mm256_max_epi32(largest, _mm256_castps_si256(magnitude8(load8(x + i))));
  const int32_t exponent = out.exponent[at] = sliced_exponent(largest_bits_256(largest), kSlices);
  const bool usable = exponent != kUnusable;
  // Products are exact but where they are below any half: then they round to 0 all the same.
  const __m256 factor = _mm256_set1_ps(kf_f((8 * kSlices - 1 - (usable ? exponent : 0) + 127) << 23));
  int32_t *high = out.high + int64_t(at) * k, *middle = out.middle + int64_t(at) * k, *low = out.low + at * (k / 2);
  for (int i = 0; i < k; i += 16) {
    __m256i lowest[2];
    for (int half = 0; half < 2; ++half) {
      const __m256 value = usable ? load8(x + i + 8 * half) : _mm256_setzero_ps();
      const __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(zero_below8(value, kSmallestRead), factor));
      const __m256i upper = high_slice(q);
      lowest[half] = low_slice(q, upper);
      if constexpr (kSlices == 2) {
        store_words(high + i + 8 * half, paired(upper, lowest[half]));
      } else {
        const __m256i h = high_slice(upper), m = low_slice(upper, h);
        store_words(high + i + 8 * half, paired(h, m));
        if constexpr (Rows::kRanks == 5) store_words(middle + i + 8 * half, paired(m, lowest[half]));
      }
    }
    store_words(low + i / 2, words_of(lowest[0], lowest[1]));
  }
}

// A strip of 16 columns: (256 H + M, H) and (L, M) [k][16], (L, L) and (H, H) of neighbouring k [k / 2][16].
struct WeightStrip256 {
  int32_t *top, *rest, *low, *high;

  static constexpr int64_t words(int k) { return int64_t(3) * k * kColumns256; }
  WeightStrip256(int32_t* base, int k)
      : top(base), rest(top + k * kColumns256), low(rest + k * kColumns256), high(low + k / 2 * kColumns256) {}
};

// The transposed pairs of bytes of eight columns, widened.
template <class Store>
KF_INLINE void widen_columns_256(const __m128i (&rows)[8], Store store) {
  __m128i columns[8];
  transpose_words_8(rows, columns);
  for (int w = 0; w < 8; ++w) store(w, _mm256_cvtepi8_epi16(columns[w]));
}

// What the products of Rows need.
template <class Rows>
inline void pack_weights_256(const SlicedDot& g, int column, const WeightStrip256& out) {
  for (int c = 0; c < kColumns256; c += 8) {
    for (int i = 0; i < g.k; i += 16) {
      __m128i slice[kWeightSlices][8], pairs[8];
      for (int s = 0; s < kWeightSlices; ++s) {
        for (int r = 0; r < 8; ++r) {
          const bool present = column + c + r < g.n;
          const int8_t* from = g.w[s] + (present ? column + c + r : 0) * g.ldw + i;
          slice[s][r] = present ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)) : _mm_setzero_si128();
        }
      }
      for (int half = 0; half < 2; ++half) {
        const int64_t at = (i + 8 * half) * kColumns256 + c;
        for (int r = 0; r < 8; ++r) {
          pairs[r] = half ? _mm_unpackhi_epi8(slice[0][r], slice[1][r]) : _mm_unpacklo_epi8(slice[0][r], slice[1][r]);
        }
        widen_columns_256(pairs, [&](int w, __m256i high_middle) KF_INLINE_LAMBDA {
          const __m256i turned =
              _mm256_or_si256(_mm256_slli_epi32(high_middle, 16), _mm256_srli_epi32(high_middle, 16));
          const __m256i joined = _mm256_add_epi16(_mm256_slli_epi16(high_middle, 8), turned);
          store_words(out.top + at + w * kColumns256, _mm256_blend_epi16(joined, turned, 0xAA));
        });
        for (int r = 0; r < 8; ++r) {
          pairs[r] = half ? _mm_unpackhi_epi8(slice[2][r], slice[1][r]) : _mm_unpacklo_epi8(slice[2][r], slice[1][r]);
        }
        widen_columns_256(pairs, [&](int w, __m256i low_middle)
                                     KF_INLINE_LAMBDA { store_words(out.rest + at + w * kColumns256, low_middle); });
      }
      const int64_t at = i / 2 * kColumns256 + c;
      if constexpr (Rows::kLowest) {
        widen_columns_256(slice[2], [&](int w, __m256i pairs_of_k)
                                        KF_INLINE_LAMBDA { store_words(out.low + at + w * kColumns256, pairs_of_k); });
      }
      if constexpr (Rows::kSlices == 3) {
        widen_columns_256(slice[0], [&](int w, __m256i pairs_of_k)
                                        KF_INLINE_LAMBDA { store_words(out.high + at + w * kColumns256, pairs_of_k); });
      }
    }
  }
}

// total = total * 256 + the sum of pair products, as float32; the product is exact.
template <int kRows>
KF_INLINE void join_rank_256(const __m256i (&sums)[kRows][2], __m256 (&total)[kRows][2]) {
  for (int r = 0; r < kRows; ++r) {
    for (int s = 0; s < 2; ++s) {
      total[r][s] = _mm256_fmadd_ps(total[r][s], _mm256_set1_ps(256.0f), _mm256_cvtepi32_ps(sums[r][s]));
    }
  }
}

// A row's dots with eight others, given their windows' exponents.
KF_INLINE __m256 scaled_term8(__m256 total, int32_t exponent, __m256i exponents, int unit) {
  const __m256i unusable = _mm256_set1_epi32(kUnusable);
  const __m256 term = scaled8(total, _mm256_add_epi32(exponents, _mm256_set1_epi32(exponent - unit)));
  const __m256i none = _mm256_or_si256(_mm256_cmpeq_epi32(exponents, unusable),
                                       _mm256_cmpeq_epi32(_mm256_set1_epi32(exponent), unusable));
  return _mm256_blendv_ps(term, _mm256_set1_ps(kf_f(kNotANumber)), _mm256_castsi256_ps(none));
}

// acc += kRows rows, from `at` in the batch and `row` in acc, with a strip's columns.
template <class Rows, int kRows>
inline void add_tile_256(const SlicedDot& g, const CutRows256& rows, int at, int row, int tokens, int column,
                         const WeightStrip256& w) {
  const int64_t k = g.k;
  __m256i sums[kRows][2];
  __m256 total[kRows][2];
  const TileRows<int32_t> high{rows.high + at * k, k, 1}, low{rows.low + at * (k / 2), k / 2, 1};
  multiply_tile(high, w.top, kColumns256, k, sums);
  for (int r = 0; r < kRows; ++r) {
    for (int s = 0; s < 2; ++s) total[r][s] = _mm256_cvtepi32_ps(sums[r][s]);
  }
  multiply_tile(high, w.rest, kColumns256, k, sums);
  if constexpr (Rows::kSlices == 3) {
    __m256i more[kRows][2];
    multiply_tile(low, w.high, kColumns256, k / 2, more);
    for (int r = 0; r < kRows; ++r) {
      for (int s = 0; s < 2; ++s) sums[r][s] = _mm256_add_epi32(sums[r][s], more[r][s]);
    }
  }
  join_rank_256(sums, total);
  if constexpr (Rows::kRanks == 5) {
    multiply_tile({rows.middle + at * k, k, 1}, w.rest, kColumns256, k, sums);
    join_rank_256(sums, total);
  }
  if constexpr (Rows::kLowest) {
    multiply_tile(low, w.low, kColumns256, k / 2, sums);
    join_rank_256(sums, total);
  }
  const int columns = std::min(kColumns256, g.n - column);
  alignas(32) int32_t exponents[kColumns256];
  for (int j = 0; j < kColumns256; ++j) exponents[j] = g.w_exponent[column + std::min(j, columns - 1)];
  for (int r = 0; r < kRows && r < tokens; ++r) {
    alignas(32) float terms[kColumns256];
    for (int s = 0; s < 2; ++s) {
      const __m256i e = load_words(exponents + 8 * s);
      _mm256_store_ps(terms + 8 * s, scaled_term8(total[r][s], rows.exponent[at + r], e, Rows::kUnit));
    }
    float* acc = g.acc + (row + r) * g.ld_acc + column;
    for (int j = 0; j < columns; ++j) acc[j] = acc[j] + terms[j];
  }
}

template <class Rows>
int sliced_dot_256(const SlicedDot& g) {
  static thread_local Scratch scratch;
  const int strips = (g.n + kColumns256 - 1) / kColumns256;
  const int64_t batch = int64_t(kRowBatch256) * g.k, strip = WeightStrip256::words(g.k);
  if (!scratch.reserve(size_t(strips * strip + 3 * batch) * sizeof(int32_t) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  int32_t* weights = scratch.take<int32_t>(strips * strip);
  CutRows256 rows{scratch.take<int32_t>(batch), scratch.take<int32_t>(batch), scratch.take<int32_t>(batch / 2), {}};
  for (int s = 0; s < strips; ++s) pack_weights_256<Rows>(g, s * kColumns256, WeightStrip256(weights + s * strip, g.k));
  for (int row = 0; row < g.m; row += kRowBatch256) {
    const int tokens = std::min(kRowBatch256, g.m - row);
    for (int t = 0; t < tokens; ++t) {
      cut_row_256<Rows>(static_cast<const typename Rows::Stored*>(g.x) + (row + t) * g.ldx, g.k, t, rows);
    }
    for (int s = 0; s < strips; ++s) {  // rows beyond the last are whatever they were
      const WeightStrip256 w(weights + s * strip, g.k);
      in_tiles(tokens, [&](auto n, int t) KF_INLINE_LAMBDA {
        add_tile_256<Rows, n()>(g, rows, t, row + t, tokens - t, s * kColumns256, w);
      });
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
