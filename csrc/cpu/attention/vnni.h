// One chunk of attention on AVX512-VNNI: entries are cut once, packed for both products and stay in the L2 cache.
//
// vpdpbusd multiplies unsigned by signed bytes. Entries' slices are stored plus 128, queries' and weights' as they are;
// accumulators start at -128 times the sum of the signed side, and end at the true dot.
#pragma once

#include "attention/chunk.h"
#include "core/transpose_512.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

constexpr int kTileRows = 4;

KF_INLINE __m512 limit16(__m512 x) {
  const __m512 magnitude = _mm512_abs_ps(x);
  // Not below: NaN stays.
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(kSmallestResult), _CMP_NLT_UQ), x);
}

KF_INLINE __m512 exp2_of_nonpositive16(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-100.0f), _CMP_GE_OQ);
  const __mmask16 read = normal & _mm512_cmp_ps_mask(x, _mm512_set1_ps(-kSmallestRead), _CMP_LE_OQ);
  const __m512 v = _mm512_maskz_mov_ps(read, x);
  const __m512i n = _mm512_cvtps_epi32(v);
  const __m512 r = _mm512_sub_ps(v, _mm512_cvtepi32_ps(n));
  __m512 q = _mm512_set1_ps(kf_f(kExp2[0]));
  for (int i = 1; i < 6; ++i) q = _mm512_add_ps(_mm512_mul_ps(q, r), _mm512_set1_ps(kf_f(kExp2[i])));
  const __m512 y = _mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(r, _mm512_mul_ps(r, q)));
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(n, 23));
  return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(normal, bits));
}

inline int row_exponent16(const uint16_t* x, int width) {
  __m512i amax = _mm512_setzero_si512();
  for (int k = 0; k < width; k += 32) {
    amax = _mm512_max_epu16(amax, _mm512_and_si512(_mm512_loadu_si512(x + k), _mm512_set1_epi16(0x7FFF)));
  }
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(amax), _mm512_extracti64x4_epi64(amax, 1));
  const __m128i quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const int top = 0xFFFF ^ (_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi32(-1)))) & 0xFFFF);
  if (top >= 0x7F80) return kUnusable;
  return top < (77 << 7) ? kLeastExponent : window_exponent(top << 16);
}

// Slices of a row, xor `flip` (0x80 adds 128 modulo 256).
inline void cut_row16(const uint16_t* x, int width, int exponent, int8_t flip, int8_t* high, int8_t* low) {
  const bool unusable = exponent == kUnusable;
  const __m512 unit = _mm512_set1_ps(unusable ? 0.0f : power_of_two(15 - exponent));
  const __m512i least = _mm512_set1_epi16(77 << 7), magic = _mm512_set1_epi32(kWindowMagicBits);
  const __m256i flips = _mm256_set1_epi8(flip);
  for (int k = 0; k < width; k += 32) {
    const __m512i raw = _mm512_loadu_si512(x + k);
    __mmask32 keep = _mm512_cmpge_epu16_mask(_mm512_and_si512(raw, _mm512_set1_epi16(0x7FFF)), least);
    if (unusable) keep = 0;
    const __m512i words = _mm512_maskz_mov_epi16(keep, raw);
    __m128i h[2], l[2];
    for (int half = 0; half < 2; ++half) {
      const __m256i part = half ? _mm512_extracti64x4_epi64(words, 1) : _mm512_castsi512_si256(words);
      const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16));
      const __m512i q =
          _mm512_sub_epi32(_mm512_castps_si512(_mm512_fmadd_ps(value, unit, _mm512_set1_ps(kWindowMagic))), magic);
      l[half] = _mm512_cvtepi32_epi8(q);
      h[half] = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + k), _mm256_xor_si256(_mm256_set_m128i(h[1], h[0]), flips));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + k), _mm256_xor_si256(_mm256_set_m128i(l[1], l[0]), flips));
  }
}

// rows [16][width] bytes to [width / 4][16 rows][4]: a transposition of 4-byte words.
inline void pack_keys(const int8_t* rows, int width, int8_t* out) {
  for (int k = 0; k < width; k += 64) {
    const int bytes = std::min(64, width - k);
    const __mmask64 inside = bytes == 64 ? ~uint64_t(0) : (uint64_t(1) << bytes) - 1;
    __m512i a[16], b[16];
    for (int r = 0; r < 16; ++r) a[r] = _mm512_maskz_loadu_epi8(inside, rows + int64_t(r) * width + k);
    transpose_words_512(a, b);
    for (int w = 0; w < bytes / 4; ++w) _mm512_store_si512(out + (k / 4 + w) * 64, b[w]);
  }
}

// Four rows of `width` bytes to one group of every strip: out[d / 16 * strip + (d % 16) * 4 + row].
inline void pack_values(const int8_t* rows, int width, int8_t* out, int64_t strip) {
  const __m512i turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int d = 0; d < width; d += 64) {
    const int bytes = std::min(64, width - d);
    const __mmask64 inside = bytes == 64 ? ~uint64_t(0) : (uint64_t(1) << bytes) - 1;
    __m512i a[4];
    for (int r = 0; r < 4; ++r) {
      a[r] = _mm512_permutexvar_epi32(turn, _mm512_maskz_loadu_epi8(inside, rows + int64_t(r) * width + d));
    }
    const __m512i lo01 = _mm512_unpacklo_epi8(a[0], a[1]), hi01 = _mm512_unpackhi_epi8(a[0], a[1]);
    const __m512i lo23 = _mm512_unpacklo_epi8(a[2], a[3]), hi23 = _mm512_unpackhi_epi8(a[2], a[3]);
    const __m512i b[4] = {_mm512_unpacklo_epi16(lo01, lo23), _mm512_unpackhi_epi16(lo01, lo23),
                          _mm512_unpacklo_epi16(hi01, hi23), _mm512_unpackhi_epi16(hi01, hi23)};
    for (int s = 0; s < bytes / 16; ++s) _mm512_store_si512(out + (d / 16 + s) * strip, b[s]);
  }
}

KF_INLINE __m512i four_bytes(const int8_t* from) {
  int32_t bits;
  std::memcpy(&bits, from, 4);
  return _mm512_set1_epi32(bits);
}

// acc += unsigned bytes b . signed bytes a, in place: with the intrinsic, GCC 12 copies and spills accumulators.
KF_INLINE void dot_bytes(__m512i& acc, __m512i b, __m512i a) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(b), "v"(a));
}

// The signed side of a product: rows of slices, and -128 times their sums.
struct SignedRows {
  const int8_t *high, *low;
  int64_t ld;
  const int32_t *bias_high, *bias_low;
};

// Sums of one row against two strips. A struct of scalars: GCC keeps arrays of accumulators in memory.
struct RowSums {
  __m512i high0, high1, cross0, cross1, low0, low1;

  KF_INLINE void start(const SignedRows& a, int row) {
    high0 = high1 = _mm512_set1_epi32(a.bias_high[row]);
    cross0 = cross1 = _mm512_set1_epi32(a.bias_high[row] + a.bias_low[row]);
    low0 = low1 = _mm512_set1_epi32(a.bias_low[row]);
  }
  KF_INLINE void add(const int8_t* a_high, const int8_t* a_low, __m512i h0, __m512i h1, __m512i l0, __m512i l1) {
    const __m512i h = four_bytes(a_high);
    dot_bytes(high0, h0, h);
    dot_bytes(high1, h1, h);
    dot_bytes(cross0, l0, h);
    dot_bytes(cross1, l1, h);
    const __m512i l = four_bytes(a_low);
    dot_bytes(low0, l0, l);
    dot_bytes(low1, l1, l);
    dot_bytes(cross0, h0, l);
    dot_bytes(cross1, h1, l);
  }
  static KF_INLINE __m512 join(__m512i high, __m512i cross, __m512i low) {
    const __m512 middle = _mm512_mul_ps(_mm512_cvtepi32_ps(cross), _mm512_set1_ps(256.0f));
    const __m512 top = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(65536.0f), middle);  // exact product
    return _mm512_add_ps(top, _mm512_cvtepi32_ps(low));
  }
  KF_INLINE void finish(__m512 out[2]) const {
    out[0] = join(high0, cross0, low0);
    out[1] = join(high1, cross1, low1);
  }
};

// Four rows times two strips of 16 columns: float values of the joined sums, out[row][strip].
KF_INLINE void sliced_tile(const SignedRows& a, int row, const int8_t* b_high, const int8_t* b_low, int64_t strip,
                           int groups, __m512 out[kTileRows][2]) {
  RowSums r0, r1, r2, r3;
  r0.start(a, row);
  r1.start(a, row + 1);
  r2.start(a, row + 2);
  r3.start(a, row + 3);
  const int8_t *ah = a.high + row * a.ld, *al = a.low + row * a.ld;
  const int64_t ld = a.ld;
  for (int64_t g = 0; g < groups; ++g) {
    const __m512i h0 = _mm512_load_si512(b_high + g * 64), h1 = _mm512_load_si512(b_high + strip + g * 64);
    const __m512i l0 = _mm512_load_si512(b_low + g * 64), l1 = _mm512_load_si512(b_low + strip + g * 64);
    const int8_t *h = ah + 4 * g, *l = al + 4 * g;
    r0.add(h, l, h0, h1, l0, l1);
    r1.add(h + ld, l + ld, h0, h1, l0, l1);
    r2.add(h + 2 * ld, l + 2 * ld, h0, h1, l0, l1);
    r3.add(h + 3 * ld, l + 3 * ld, h0, h1, l0, l1);
  }
  r0.finish(out[0]);
  r1.finish(out[1]);
  r2.finish(out[2]);
  r3.finish(out[3]);
}

inline int32_t sum_of_bytes(const int8_t* x, int n) {
  __m512i total = _mm512_setzero_si512();
  for (int k = 0; k < n; k += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k));
    total = _mm512_add_epi32(total, _mm512_madd_epi16(_mm512_cvtepi8_epi16(bytes), _mm512_set1_epi16(1)));
  }
  return _mm512_reduce_add_epi32(total);
}

inline int attention_chunk_vnni(const AttentionChunk& x) {
  int at[kChunk];
  const int n = x.visible(at), heads = x.heads, width = x.width;
  if (n == 0) return kOk;
  const int columns = (n + 31) / 32 * 32;  // entries, with rows of zeros up to two strips
  const int64_t key_strip = int64_t(width) * 16, value_strip = int64_t(columns) * 16;
  Scratch& scratch = thread_scratch();
  const size_t entry_bytes = size_t(columns) * width;
  if (!scratch.reserve(4 * entry_bytes + 32 * width + heads * (columns * 6 + 40) + 32 * 64)) return kOutOfMemory;
  int8_t* rows_high = scratch.take<int8_t>(16 * width);
  int8_t* rows_low = scratch.take<int8_t>(16 * width);
  int8_t* keys_high = scratch.take<int8_t>(entry_bytes);
  int8_t* keys_low = scratch.take<int8_t>(entry_bytes);
  int8_t* values_high = scratch.take<int8_t>(entry_bytes);
  int8_t* values_low = scratch.take<int8_t>(entry_bytes);
  float* scores = scratch.take<float>(heads * columns);
  int8_t* p_high = scratch.take<int8_t>(heads * columns);
  int8_t* p_low = scratch.take<int8_t>(heads * columns);
  int32_t* bias_high = scratch.take<int32_t>(heads);
  int32_t* bias_low = scratch.take<int32_t>(heads);
  float* chunk_m = scratch.take<float>(heads);
  float* chunk_l = scratch.take<float>(heads);
  float* kept = scratch.take<float>(heads);
  float* added = scratch.take<float>(heads);
  alignas(64) int32_t exponent[kChunk];
  int largest = kLeastExponent;
  for (int first = 0; first < columns; first += 16) {
    for (int r = 0; r < 16; ++r) {
      int8_t *high = rows_high + r * width, *low = rows_low + r * width;
      if (first + r < n) {
        const uint16_t* row = x.row(at[first + r]);
        const int e = row_exponent16(row, width);
        exponent[first + r] = e;
        largest = std::max(largest, e);
        cut_row16(row, width, e, -128, high, low);
      } else {
        exponent[first + r] = kLeastExponent;
        std::memset(high, 0x80, width);
        std::memset(low, 0x80, width);
      }
    }
    pack_keys(rows_high, width, keys_high + first / 16 * key_strip);
    pack_keys(rows_low, width, keys_low + first / 16 * key_strip);
    for (int r = 0; r < 16; r += 4) {
      pack_values(rows_high + r * width, width, values_high + (first + r) * 16, value_strip);
      pack_values(rows_low + r * width, width, values_low + (first + r) * 16, value_strip);
    }
  }
  for (int i = 0; i < heads; ++i) {
    bias_high[i] = -128 * sum_of_bytes(x.q_high + int64_t(i) * width, width);
    bias_low[i] = -128 * sum_of_bytes(x.q_low + int64_t(i) * width, width);
  }
  const SignedRows q{x.q_high, x.q_low, width, bias_high, bias_low};
  for (int c = 0; c < columns; c += 32) {
    const __m512i e[2] = {_mm512_load_si512(exponent + c), _mm512_load_si512(exponent + c + 16)};
    for (int i = 0; i < heads; i += kTileRows) {
      __m512 total[kTileRows][2];
      const int64_t from = c / 16 * key_strip;
      sliced_tile(q, i, keys_high + from, keys_low + from, key_strip, width / 4, total);
      for (int r = 0; r < kTileRows; ++r) {
        for (int s = 0; s < 2; ++s) {
          const __m512i places = _mm512_add_epi32(e[s], _mm512_set1_epi32(x.q_exponent[i + r] - 30));
          const __m512 dot = limit16(_mm512_scalef_ps(total[r][s], _mm512_cvtepi32_ps(places)));
          __m512 t = _mm512_mul_ps(dot, _mm512_set1_ps(x.factor));
          t = _mm512_min_ps(_mm512_max_ps(t, _mm512_set1_ps(-kLargestScore)), _mm512_set1_ps(kLargestScore));
          const __mmask16 read = _mm512_cmp_ps_mask(_mm512_abs_ps(t), _mm512_set1_ps(kSmallestRead), _CMP_GE_OQ);
          _mm512_store_ps(scores + (i + r) * columns + c + 16 * s, _mm512_maskz_mov_ps(read, t));
        }
      }
    }
  }
  alignas(64) float unit[kChunk];
  for (int j = 0; j < columns; ++j) unit[j] = j < n ? power_of_two(std::max(exponent[j] - largest, -30)) : 0.0f;
  for (int i = 0; i < heads; ++i) {
    const float* t = scores + i * columns;
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int j = 0; j < n; j += 16) {
      const __mmask16 inside = n - j >= 16 ? 0xFFFF : (1 << (n - j)) - 1;
      top = _mm512_mask_max_ps(top, inside, top, _mm512_load_ps(t + j));
    }
    chunk_m[i] = _mm512_reduce_max_ps(top);
    __m512i total = _mm512_setzero_si512(), sum_high = total, sum = total;
    for (int j = 0; j < columns; j += 16) {
      const __mmask16 inside = n - j >= 16 ? 0xFFFF : n <= j ? 0 : (1 << (n - j)) - 1;
      const __m512 d = _mm512_maskz_sub_ps(inside, _mm512_load_ps(t + j), _mm512_set1_ps(chunk_m[i]));
      const __m512 weight = _mm512_maskz_mul_ps(inside, exp2_of_nonpositive16(d), _mm512_set1_ps(kWeightOne));
      total = _mm512_add_epi32(total, _mm512_cvtps_epi32(weight));
      const __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(weight, _mm512_load_ps(unit + j)));
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(p, _mm512_set1_epi32(128)), 8);
      sum = _mm512_add_epi32(sum, p);
      sum_high = _mm512_add_epi32(sum_high, high);
      _mm_store_si128(reinterpret_cast<__m128i*>(p_high + i * columns + j), _mm512_cvtepi32_epi8(high));
      _mm_store_si128(reinterpret_cast<__m128i*>(p_low + i * columns + j), _mm512_cvtepi32_epi8(p));
    }
    const int32_t highs = _mm512_reduce_add_epi32(sum_high);
    bias_high[i] = -128 * highs;
    bias_low[i] = -128 * (_mm512_reduce_add_epi32(sum) - 256 * highs);
    const bool unusable = x.q_exponent[i] == kUnusable || largest == kUnusable;
    chunk_l[i] = unusable ? kf_f(kNanBits) : float(_mm512_reduce_add_epi32(total));
  }
  merge_factors(x, chunk_m, chunk_l, kept, added);
  const SignedRows p{p_high, p_low, columns, bias_high, bias_low};
  const __m512 places = _mm512_set1_ps(float(largest - 15));
  for (int d = 0; d < width; d += 32) {
    for (int i = 0; i < heads; i += kTileRows) {
      __m512 total[kTileRows][2];
      const int64_t from = d / 16 * value_strip;
      sliced_tile(p, i, values_high + from, values_low + from, value_strip, columns / 4, total);
      for (int r = 0; r < kTileRows; ++r) {
        const __m512 a = _mm512_set1_ps(kept[i + r]), b = _mm512_set1_ps(added[i + r]);
        for (int s = 0; s < 2; ++s) {
          float* o = x.o + (i + r) * x.ld_o + d + 16 * s;
          const __m512 value = limit16(_mm512_scalef_ps(total[r][s], places));
          const __m512 old = x.fresh ? _mm512_setzero_ps() : limit16(_mm512_mul_ps(_mm512_loadu_ps(o), a));
          _mm512_storeu_ps(o, _mm512_add_ps(old, limit16(_mm512_mul_ps(value, b))));
        }
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
