// One chunk of attention on AVX2. Entries are cut once, their words serve as keys and as values.
//
// Of the three sums of slice products, high by high (hh), high by low and low by high (cross) and low by low (ll), hh
// and cross only matter as 256 hh + cross, which 32 bits hold, and whose rounding to float32 is that of the
// definition's first addition. With q = 256 h + l it is the sum of q h' + h l': one vpmaddwd where two slices each take
// two.
#pragma once

#include "attention/chunk.h"
#include "core/values_256.h"
#include "core/words_256.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

constexpr int kStripAvx2 = 16;  // columns of a tile

KF_INLINE __m256 limit8(__m256 x) { return zero_below8(x, kSmallestResult); }

KF_INLINE __m256 exp2_of_nonpositive8(__m256 x) {
  const __m256 normal = _mm256_cmp_ps(x, _mm256_set1_ps(-100.0f), _CMP_GE_OQ);
  const __m256 read = _mm256_and_ps(normal, _mm256_cmp_ps(x, _mm256_set1_ps(-kSmallestRead), _CMP_LE_OQ));
  const __m256 v = _mm256_and_ps(read, x);
  const __m256i n = _mm256_cvtps_epi32(v);
  const __m256 r = _mm256_sub_ps(v, _mm256_cvtepi32_ps(n));
  __m256 q = _mm256_set1_ps(kf_f(kExp2[0]));
  for (int i = 1; i < 6; ++i) q = _mm256_add_ps(_mm256_mul_ps(q, r), _mm256_set1_ps(kf_f(kExp2[i])));
  const __m256 y = _mm256_add_ps(_mm256_set1_ps(1.0f), _mm256_add_ps(r, _mm256_mul_ps(r, q)));
  const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(n, 23));
  return _mm256_and_ps(normal, _mm256_castsi256_ps(bits));
}

inline int row_exponent8(const uint16_t* x, int width) {
  __m256i amax = _mm256_setzero_si256();
  for (int k = 0; k < width; k += 16) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k));
    amax = _mm256_max_epu16(amax, _mm256_and_si256(words, _mm256_set1_epi16(0x7FFF)));
  }
  const int32_t top = largest_u16(amax);
  if (top >= 0x7F80) return kUnusable;
  return top < (77 << 7) ? kLeastExponent : window_exponent(top << 16);
}

// Eight integers of a window; a product that underflows rounds to 0 all the same.
KF_INLINE __m256i window8(const uint16_t* x, __m256 unit) {
  return _mm256_cvtps_epi32(_mm256_mul_ps(zero_below8(load8(x), kSmallestRead), unit));
}

// Pairs (q, h) of a row's elements, and its low slices as words.
inline void cut_entry(const uint16_t* x, int width, int exponent, int32_t* pairs, int16_t* low) {
  const __m256 unit = _mm256_set1_ps(power_of_two(15 - exponent));
  for (int k = 0; k < width; k += 16) {
    __m256i l[2];
    for (int half = 0; half < 2; ++half) {
      const __m256i q = window8(x + k + 8 * half, unit), h = high_slice(q);
      store_words(pairs + k + 8 * half, paired(q, h));
      l[half] = low_slice(q, h);
    }
    store_words(low + k, words_of(l[0], l[1]));
  }
}

// As cut_row.
inline void cut_row8(const uint16_t* x, int width, int exponent, int8_t* high, int8_t* low) {
  if (exponent == kUnusable) {
    std::memset(high, 0, width);
    std::memset(low, 0, width);
    return;
  }
  const __m256 unit = _mm256_set1_ps(power_of_two(15 - exponent));
  for (int k = 0; k < width; k += 16) {
    const __m256i first = window8(x + k, unit), second = window8(x + k + 8, unit);
    const __m256i h = words_of(high_slice(first), high_slice(second));
    const __m256i l = _mm256_sub_epi16(words_of(first, second), _mm256_slli_epi16(h, 8));
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(h, l), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high + k), _mm256_castsi256_si128(bytes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low + k), _mm256_extracti128_si256(bytes, 1));
  }
}

// Columns of eight queries: pairs of both slices [width][16], and of neighbouring low slices [width / 2][16]; `count`
// rows are there, the others are zeros. `width` is a multiple of 16.
inline void pack_queries8(const int8_t* high, const int8_t* low, int count, int width, int32_t* both, int32_t* lows) {
  const auto bytes_of = [](const int8_t* from)
                            KF_INLINE_LAMBDA { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
  for (int k = 0; k < width; k += 16) {
    __m128i l[8], first[8], second[8], to[8];
    for (int r = 0; r < 8; ++r) {
      const int64_t at = int64_t(r) * width + k;
      l[r] = r < count ? bytes_of(low + at) : _mm_setzero_si128();
      const __m128i h = r < count ? bytes_of(high + at) : _mm_setzero_si128();
      first[r] = _mm_unpacklo_epi8(h, l[r]);
      second[r] = _mm_unpackhi_epi8(h, l[r]);
    }
    const auto store = [&to](int32_t* out) KF_INLINE_LAMBDA {
      for (int w = 0; w < 8; ++w) store_words(out + w * kStripAvx2, _mm256_cvtepi8_epi16(to[w]));
    };
    transpose_words_8(first, to);
    store(both + k * kStripAvx2);
    transpose_words_8(second, to);
    store(both + (k + 8) * kStripAvx2);
    transpose_words_8(l, to);
    store(lows + k / 2 * kStripAvx2);
  }
}

// A product's operands: rows and columns of both kinds of pairs.
struct SlicedOperands {
  TileRows<int32_t> both, low;
  const int32_t *columns, *low_columns;
  int64_t ld, depth;  // of the columns; products of both slices
};

// total[r][.]: the joined sums of slice products as float32, rows from `row` on.
template <int kRows>
KF_INLINE void sliced_tile8(const SlicedOperands& x, int row, __m256 (&total)[kRows][2]) {
  __m256i sums[kRows][2], low[kRows][2];
  multiply_tile({x.both.from + row * x.both.ld, x.both.ld, x.both.step}, x.columns, x.ld, x.depth, sums);
  for (int r = 0; r < kRows; ++r) {
    for (int s = 0; s < 2; ++s) total[r][s] = _mm256_cvtepi32_ps(sums[r][s]);
  }
  multiply_tile({x.low.from + row * x.low.ld, x.low.ld, x.low.step}, x.low_columns, x.ld, (x.depth + 1) / 2, low);
  for (int r = 0; r < kRows; ++r) {
    for (int s = 0; s < 2; ++s) {  // the product is exact
      total[r][s] = _mm256_fmadd_ps(total[r][s], _mm256_set1_ps(256.0f), _mm256_cvtepi32_ps(low[r][s]));
    }
  }
}

struct AttentionAvx2 {
  const AttentionChunk& x;
  int n, heads, entries;  // visible entries; heads and entries with what fills tiles up
  int64_t ld, ld_low;     // of entries' pairs, both kinds, so that rows begin in different sets of the cache
  int32_t *q_both = nullptr, *q_low = nullptr;  // strips of 16 heads
  int32_t *pairs = nullptr, *key_low = nullptr, *value_low = nullptr;
  float* scores = nullptr;                      // [entries][heads]
  int32_t *p_both = nullptr, *p_low = nullptr;  // [n][heads], [(n + 1) / 2][heads]
  float *chunk_m = nullptr, *chunk_l = nullptr, *kept = nullptr, *added = nullptr;
  int exponent[kChunk] = {}, largest = kLeastExponent;

  int16_t* low(int j) const { return reinterpret_cast<int16_t*>(key_low + j * ld_low); }

  void cut(const int* at) {
    for (int j = 0; j < entries; ++j) {
      exponent[j] = j < n ? row_exponent8(x.row(at[j]), x.width) : kLeastExponent;
      largest = std::max(largest, exponent[j]);
      if (j < n && exponent[j] != kUnusable) {
        cut_entry(x.row(at[j]), x.width, exponent[j], pairs + j * ld, low(j));
      } else {
        std::memset(pairs + j * ld, 0, x.width * 4);
        std::memset(low(j), 0, x.width * 2);
      }
    }
    for (int j = 0; j < n; j += 2) {
      const int16_t *first = low(j), *second = low(j + 1);
      int32_t* to = value_low + j / 2 * ld;
      for (int k = 0; k < x.width; k += 16) {
        const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(first + k));
        const __m256i b = _mm256_load_si256(reinterpret_cast<const __m256i*>(second + k));
        const __m256i lo = _mm256_unpacklo_epi16(a, b), hi = _mm256_unpackhi_epi16(a, b);
        store_words(to + k, _mm256_permute2x128_si256(lo, hi, 0x20));
        store_words(to + k + 8, _mm256_permute2x128_si256(lo, hi, 0x31));
      }
    }
    for (int i = 0; i < heads; i += 8) {
      const int64_t strip = int64_t(i / 16) * 16 * x.width, from = int64_t(i) * x.width;
      const int count = std::max(0, std::min(8, x.heads - i));
      pack_queries8(x.q_high + from, x.q_low + from, count, x.width, q_both + strip + i % 16,
                    q_low + strip / 2 + i % 16);
    }
  }

  template <int kRows>
  void score_rows(const SlicedOperands& product, int j, int i) {
    alignas(32) int32_t q_exponent[kStripAvx2];
    for (int c = 0; c < kStripAvx2; ++c) q_exponent[c] = i + c < x.heads ? x.q_exponent[i + c] : 0;
    __m256 total[kRows][2];
    sliced_tile8(product, j, total);
    for (int r = 0; r < kRows; ++r) {
      for (int s = 0; s < 2; ++s) {
        const __m256i places =
            _mm256_add_epi32(load_words(q_exponent + 8 * s), _mm256_set1_epi32(exponent[j + r] - 30));
        __m256 t = _mm256_mul_ps(scaled8(total[r][s], places), _mm256_set1_ps(x.factor));
        t = _mm256_min_ps(_mm256_set1_ps(kLargestScore), _mm256_max_ps(_mm256_set1_ps(-kLargestScore), t));
        _mm256_store_ps(scores + int64_t(j + r) * heads + i + 8 * s, zero_below8(t, kSmallestRead));
      }
    }
  }

  void score() {
    for (int i = 0; i < heads; i += kStripAvx2) {
      const int64_t strip = int64_t(i) * x.width;
      const SlicedOperands product{{pairs, ld, 1},    {key_low, ld_low, 1}, q_both + strip,
                                   q_low + strip / 2, kStripAvx2,           x.width};
      in_tiles(entries, [&](auto rows, int j) KF_INLINE_LAMBDA { score_rows<rows()>(product, j, i); });
    }
  }

  // Weights of eight heads from i on.
  void weigh(int i, const float* unit) {
    __m256 top = _mm256_set1_ps(-INFINITY);
    for (int j = 0; j < n; ++j) top = _mm256_max_ps(_mm256_load_ps(scores + int64_t(j) * heads + i), top);
    __m256i total = _mm256_setzero_si256();
    for (int j = 0; j < n; j += 2) {
      __m256i l[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
      for (int k = 0; k < 2 && j + k < n; ++k) {
        const int64_t at = int64_t(j + k) * heads + i;
        const __m256 weight = _mm256_mul_ps(exp2_of_nonpositive8(_mm256_sub_ps(_mm256_load_ps(scores + at), top)),
                                            _mm256_set1_ps(kWeightOne));
        total = _mm256_add_epi32(total, _mm256_cvtps_epi32(weight));
        const __m256i p = _mm256_cvtps_epi32(_mm256_mul_ps(weight, _mm256_set1_ps(unit[j + k])));
        const __m256i h = high_slice(p);
        l[k] = low_slice(p, h);
        store_words(p_both + at, paired(h, l[k]));
      }
      store_words(p_low + int64_t(j / 2) * heads + i, paired(l[0], l[1]));
    }
    _mm256_store_ps(chunk_m + i, top);
    _mm256_store_ps(chunk_l + i, _mm256_cvtepi32_ps(total));
  }

  void weigh_all() {
    float unit[kChunk];
    for (int j = 0; j < n; ++j) unit[j] = power_of_two(std::max(exponent[j] - largest, -30));
    for (int i = 0; i < heads; i += 8) weigh(i, unit);
    for (int i = 0; i < x.heads; ++i) {
      if (x.q_exponent[i] == kUnusable || largest == kUnusable) chunk_l[i] = kf_f(kNanBits);
    }
  }

  template <int kRows>
  void add_rows(const SlicedOperands& product, int i, int d) {
    const __m256 unit = _mm256_set1_ps(largest == kUnusable ? 0.0f : power_of_two(largest - 15));
    __m256 total[kRows][2];
    sliced_tile8(product, i, total);
    for (int r = 0; r < kRows; ++r) {
      const __m256 a = _mm256_set1_ps(kept[i + r]), b = _mm256_set1_ps(added[i + r]);
      for (int s = 0; s < 2; ++s) {
        float* o = x.o + (i + r) * x.ld_o + d + 8 * s;
        const __m256 term = limit8(_mm256_mul_ps(limit8(_mm256_mul_ps(total[r][s], unit)), b));
        const __m256 old = x.fresh ? _mm256_setzero_ps() : limit8(_mm256_mul_ps(_mm256_loadu_ps(o), a));
        _mm256_storeu_ps(o, _mm256_add_ps(old, term));
      }
    }
  }

  void add() {
    for (int d = 0; d < x.width; d += kStripAvx2) {
      const SlicedOperands product{{p_both, 1, heads}, {p_low, 1, heads}, pairs + d, value_low + d, ld, n};
      in_tiles(x.heads, [&](auto rows, int i) KF_INLINE_LAMBDA { add_rows<rows()>(product, i, d); });
    }
  }
};

inline int attention_chunk_avx2(const AttentionChunk& x) {
  int at[kChunk];
  const int n = x.visible(at), width = x.width;
  if (n == 0) return kOk;
  const int heads = (x.heads + 15) / 16 * 16, entries = (n + 1) / 2 * 2;
  const int64_t ld = width + 16, ld_low = width / 2 + 16;
  Scratch& scratch = thread_scratch();
  const size_t bytes = size_t(6) * heads * width + size_t(entries) * (6 * ld + 4 * ld_low + 10 * heads) + 16 * heads;
  if (!scratch.reserve(bytes + 16 * Scratch::kAlignment)) return kOutOfMemory;
  AttentionAvx2 chunk{x, n, heads, entries, ld, ld_low};
  chunk.q_both = scratch.take<int32_t>(int64_t(heads) * width);
  chunk.q_low = scratch.take<int32_t>(int64_t(heads) * width / 2);
  chunk.pairs = scratch.take<int32_t>(entries * ld);
  chunk.key_low = scratch.take<int32_t>(entries * ld_low);
  chunk.value_low = scratch.take<int32_t>(entries / 2 * ld);
  chunk.scores = scratch.take<float>(int64_t(entries) * heads);
  chunk.p_both = scratch.take<int32_t>(int64_t(entries) * heads);
  chunk.p_low = scratch.take<int32_t>(int64_t(entries) / 2 * heads);
  chunk.chunk_m = scratch.take<float>(heads);
  chunk.chunk_l = scratch.take<float>(heads);
  chunk.kept = scratch.take<float>(heads);
  chunk.added = scratch.take<float>(heads);
  chunk.cut(at);
  chunk.score();
  chunk.weigh_all();
  merge_factors(x, chunk.chunk_m, chunk.chunk_l, chunk.kept, chunk.added);
  chunk.add();
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
