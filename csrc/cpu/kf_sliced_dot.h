// acc += the dot of one chunk of rows with float32 weights that were cut into three int8 slices (contract C4).
//
// Rows are cut here: two slices of bfloat16, three of float32. Slice products of equal weight are summed exactly; the
// sums are joined from the highest weight down and scaled, as kernelforge.numerics.window writes it.
#pragma once

#include "kf_gemm_engines.h"
#include "kf_scalar.h"

namespace kf {
namespace {

struct SlicedDot {
  float* acc;  // [m][n]
  int64_t ld_acc;
  const void* x;  // [m][k], uint16_t or float
  int64_t ldx;
  const int32_t* w_exponent;  // [n]
  const int8_t* w[3];         // [n][k], highest slice first
  int64_t ldw;
  int m, n, k;
};

constexpr int kWeightSlices = 3;
constexpr int kUnusable = 255;               // exponent of a row with an infinity or a NaN
constexpr int32_t kSmallestRead = 77 << 23;  // 2^-50
constexpr int32_t kSmallestResult = 27;      // exponent field of 2^-100
constexpr int32_t kInfinity = 0x7F800000, kNotANumber = 0x7FC00000, kMagnitude = 0x7FFFFFFF;

// Exponent of a window of `slices` slices, from the float32 bits of a row's largest magnitude.
inline int32_t sliced_exponent(int32_t amax, int slices) {
  if (amax >= kInfinity) return kUnusable;
  if (amax < kSmallestRead) return 0;
  // Significands that would round past 127 in the high slice take one exponent more.
  return ((amax + (slices == 2 ? 0x10000 : 0x10101)) >> 23) - 126;
}

// Exponent of the product's unit.
constexpr int sliced_unit(int slices) { return (8 * slices - 1) + (8 * kWeightSlices - 1); }

template <int kSlices>
inline int32_t stored_bits(const void* x, int64_t index) {
  if (kSlices == 2) return int32_t(uint32_t(static_cast<const uint16_t*>(x)[index]) << 16);
  return kf_i(static_cast<const float*>(x)[index]);
}

// total * 2^places, +0 below 2^-100, infinite beyond float32.
inline float sliced_scale(float total, int32_t places) {
  const int32_t bits = kf_i(total), magnitude = bits & kMagnitude, field = (magnitude >> 23) + places;
  if (magnitude == 0 || field < kSmallestResult) return 0.0f;
  return kf_f(field > 254 ? (bits ^ magnitude) | kInfinity : bits + (places << 23));
}

// One row's slices, each of `depth` bytes.
template <int kSlices>
inline int32_t cut_row(const SlicedDot& g, int row, int8_t* slices, int depth) {
  int32_t amax = 0;
  for (int i = 0; i < g.k; ++i) amax = std::max(amax, stored_bits<kSlices>(g.x, row * g.ldx + i) & kMagnitude);
  const int32_t exponent = sliced_exponent(amax, kSlices);
  std::fill_n(slices, kSlices * depth, int8_t(0));
  if (exponent == kUnusable) return exponent;
  for (int i = 0; i < g.k; ++i) {
    const int32_t bits = stored_bits<kSlices>(g.x, row * g.ldx + i);
    int32_t q = 0;
    if ((bits & kMagnitude) >= kSmallestRead) {
      // x * 2^(8 s - 1 - e), rounded to nearest even by integers.
      const int places = exponent + 126 - ((bits & kMagnitude) >> 23) + 25 - 8 * kSlices;
      const int32_t significand = (bits & 0x7FFFFF) | 0x800000;
      if (places <= 0) {
        q = significand << -places;
      } else {
        const int shift = std::min(places, 30);
        q = (significand + (1 << (shift - 1)) - 1 + ((significand >> shift) & 1)) >> shift;
      }
      if (bits < 0) q = -q;
    }
    for (int s = kSlices - 1; s > 0; --s) {
      const int32_t low = ((q + 128) & 255) - 128;
      slices[s * depth + i] = int8_t(low);
      q = (q - low) >> 8;
    }
    slices[i] = int8_t(q);
  }
  return exponent;
}

template <int kSlices>
int sliced_dot_by_gemm(Isa isa, const SlicedDot& g) {
  static thread_local Scratch scratch;
  const int rows = kSlices * g.m, columns = kWeightSlices * g.n;
  if (!scratch.reserve(size_t(rows) * g.k + size_t(rows) * columns * sizeof(int32_t) + g.m * sizeof(int32_t) +
                       4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  int8_t* a = scratch.take<int8_t>(size_t(rows) * g.k);
  int32_t* products = scratch.take<int32_t>(size_t(rows) * columns);
  int32_t* exponents = scratch.take<int32_t>(g.m);
  for (int i = 0; i < g.m; ++i) exponents[i] = cut_row<kSlices>(g, i, a + int64_t(i) * kSlices * g.k, g.k);
  for (int s = 0; s < kWeightSlices; ++s) {
    const int status =
        gemm_s8(isa, GemmS8{products + s * g.n, columns, a, g.k, g.w[s], g.ldw, rows, g.n, g.k, true, true});
    if (status != kOk) return status;
  }
  constexpr int kClasses = kSlices + kWeightSlices - 1;
  for (int i = 0; i < g.m; ++i) {
    for (int j = 0; j < g.n; ++j) {
      float total = 0.0f;
      for (int rank = 0; rank < kClasses; ++rank) {
        int32_t sum = 0;
        for (int s = 0; s < kSlices; ++s) {
          if (rank - s < 0 || rank - s >= kWeightSlices) continue;
          sum += products[int64_t(i * kSlices + s) * columns + (rank - s) * g.n + j];
        }
        total = total + float(sum) * float(int64_t(1) << (8 * (kClasses - 1 - rank)));
      }
      const bool usable = exponents[i] != kUnusable && g.w_exponent[j] != kUnusable;
      const float term =
          usable ? sliced_scale(total, exponents[i] + g.w_exponent[j] - sliced_unit(kSlices)) : kf_f(kNotANumber);
      g.acc[i * g.ld_acc + j] = g.acc[i * g.ld_acc + j] + term;
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

KF_INLINE __mmask16 first_lanes(int count) {
  return count >= 16 ? __mmask16(0xFFFF) : __mmask16((1u << std::max(count, 0)) - 1);
}

KF_INLINE int32_t largest_bits_512(const float* x, int k) {
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < k; i += 16) {
    const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(first_lanes(k - i), x + i));
    largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(kMagnitude)));
  }
  return _mm512_reduce_max_epi32(largest);
}

KF_INLINE int32_t largest_bits_512(const uint16_t* x, int k) {
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < k; i += 32) {  // k is a multiple of 32
    const __m512i words = _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi16(0x7FFF));
    largest = _mm512_max_epu16(largest, words);
  }
  const __m512i high = _mm512_srli_epi32(largest, 16), low = _mm512_and_si512(largest, _mm512_set1_epi32(0xFFFF));
  return _mm512_reduce_max_epi32(_mm512_max_epi32(high, low)) << 16;
}

// Slices of 16 float32 elements at a time; `sums` is the sum of each slice, for the correction of unsigned weights.
template <bool kReadSmall>
KF_INLINE void cut_elements_512(const float* x, int k, int depth, int32_t exponent, int8_t* slices, int32_t* sums) {
  constexpr int kSlices = 3;
  __m512i totals[kSlices];  // of what is left of the window at each slice
  for (int s = 0; s < kSlices; ++s) totals[s] = _mm512_setzero_si512();
  const __m512 factor = _mm512_set1_ps(kf_f((8 * kSlices - 1 - exponent + 127) << 23));
  for (int i = 0; i < k; i += 16) {
    const __m512 value = _mm512_loadu_ps(x + i);
    // Exact but where the product is below any half: then it rounds to 0 all the same.
    __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(value, factor));
    if (kReadSmall) {
      const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(kMagnitude));
      q = _mm512_maskz_mov_epi32(_mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(kSmallestRead)), q);
    }
    for (int s = kSlices - 1; s >= 0; --s) {
      totals[s] = _mm512_add_epi32(totals[s], q);
      _mm_store_si128(reinterpret_cast<__m128i*>(slices + s * depth + i), _mm512_cvtepi32_epi8(q));
      if (s > 0) q = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
    }
  }
  for (int s = 0; s < kSlices; ++s) sums[s] = _mm512_reduce_add_epi32(totals[s]);
  for (int s = kSlices - 1; s > 0; --s) sums[s] -= 256 * sums[s - 1];
}

// The same for bfloat16, 32 elements at a time: both slices come from 16-bit windows.
template <bool kReadSmall>
KF_INLINE void cut_elements_512(const uint16_t* x, int k, int depth, int32_t exponent, int8_t* slices, int32_t* sums) {
  const __m512i ones = _mm512_set1_epi16(1);
  __m512i total = _mm512_setzero_si512(), total_high = _mm512_setzero_si512();
  const __m512 factor = _mm512_set1_ps(kf_f((15 - exponent + 127) << 23));
  for (int i = 0; i < k; i += 32) {
    __m512i words = _mm512_loadu_si512(x + i);
    if (kReadSmall) {
      const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7FFF));
      words = _mm512_maskz_mov_epi16(_mm512_cmpge_epu16_mask(magnitude, _mm512_set1_epi16(kSmallestRead >> 16)), words);
    }
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xFFFF0000))));
    const __m512i q_even = _mm512_cvtps_epi32(_mm512_mul_ps(even, factor));
    const __m512i q_odd = _mm512_cvtps_epi32(_mm512_mul_ps(odd, factor));
    const __m512i q = _mm512_mask_mov_epi16(q_even, 0xAAAAAAAA, _mm512_slli_epi32(q_odd, 16));
    const __m512i high = _mm512_srai_epi16(_mm512_add_epi16(q, _mm512_set1_epi16(128)), 8);  // |q| is at most 32639
    total = _mm512_dpwssd_epi32(total, q, ones);
    total_high = _mm512_dpwssd_epi32(total_high, high, ones);
    _mm256_store_si256(reinterpret_cast<__m256i*>(slices + i), _mm512_cvtepi16_epi8(high));
    _mm256_store_si256(reinterpret_cast<__m256i*>(slices + depth + i), _mm512_cvtepi16_epi8(q));
  }
  sums[0] = _mm512_reduce_add_epi32(total_high);
  sums[1] = _mm512_reduce_add_epi32(total) - 256 * sums[0];
}

// As cut_row.
template <int kSlices, class T>
KF_INLINE int32_t cut_row_512(const T* x, int k, int depth, int8_t* slices, int32_t* sums) {
  const int32_t exponent = sliced_exponent(largest_bits_512(x, k), kSlices);
  if (exponent == kUnusable) {
    std::memset(slices, 0, size_t(kSlices) * depth);
    std::fill_n(sums, kSlices, 0);
  } else if (exponent > 8 * kSlices - 50) {  // what reads as zero rounds to zero
    cut_elements_512<false>(x, k, depth, exponent, slices, sums);
  } else {
    cut_elements_512<true>(x, k, depth, exponent, slices, sums);
  }
  return exponent;
}

// b: 16 columns in groups of four k, made unsigned.
KF_INLINE void pack_strip_512(const int8_t* const rows[16], int k, int depth, uint8_t* b) {
  for (int first = 0; first < depth; first += 64) {
    const __mmask64 keep = k - first >= 64 ? ~__mmask64(0) : (__mmask64(1) << std::max(k - first, 0)) - 1;
    __m512i x[16], y[16];
    for (int c = 0; c < 16; ++c)
      x[c] = _mm512_maskz_loadu_epi8(rows[c] == nullptr ? 0 : keep, rows[c] == nullptr ? rows[0] : rows[c] + first);
    for (int c = 0; c < 16; c += 2) {
      y[c] = _mm512_unpacklo_epi32(x[c], x[c + 1]);
      y[c + 1] = _mm512_unpackhi_epi32(x[c], x[c + 1]);
    }
    for (int c = 0; c < 16; c += 4) {
      x[c] = _mm512_unpacklo_epi64(y[c], y[c + 2]);
      x[c + 1] = _mm512_unpackhi_epi64(y[c], y[c + 2]);
      x[c + 2] = _mm512_unpacklo_epi64(y[c + 1], y[c + 3]);
      x[c + 3] = _mm512_unpackhi_epi64(y[c + 1], y[c + 3]);
    }
    // x[4 q + j], 128-bit lane p: k group 4 p + j of columns 4 q .. 4 q + 3.
    for (int j = 0; j < 4; ++j) {
      const __m512i a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88), c = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
      const __m512i d = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xDD), e = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xDD);
      y[j] = _mm512_shuffle_i32x4(a, c, 0x88);
      y[8 + j] = _mm512_shuffle_i32x4(a, c, 0xDD);
      y[4 + j] = _mm512_shuffle_i32x4(d, e, 0x88);
      y[12 + j] = _mm512_shuffle_i32x4(d, e, 0xDD);
    }
    for (int g = 0; g < 16; ++g) {
      _mm512_store_si512(b + (first / 4 + g) * 64, _mm512_xor_si512(y[g], _mm512_set1_epi8(char(0x80))));
    }
  }
}

// kStrips strips of 16 columns; with kHalf the first 8 columns of one more.
template <int kRows, int kStrips, bool kHalf = false>
KF_INLINE void sliced_products_512(const int8_t* a, const uint8_t* b, int depth, const int32_t* sums, int32_t* out,
                                   int ld_out) {
  __m512i acc[kRows][kStrips];
  __m256i half[kRows];
  for (int r = 0; r < kRows; ++r) {
    for (int s = 0; s < kStrips; ++s) acc[r][s] = _mm512_set1_epi32(-128 * sums[r]);
    half[r] = _mm256_set1_epi32(-128 * sums[r]);
  }
  for (int group = 0; group < depth / 4; ++group) {
    const uint8_t* columns = b + group * 64;
    __m512i w[kStrips];
    for (int s = 0; s < kStrips; ++s) w[s] = _mm512_load_si512(columns + int64_t(s) * depth * 16);
    __m256i last = _mm256_setzero_si256();
    if (kHalf) last = _mm256_load_si256(reinterpret_cast<const __m256i*>(columns + int64_t(kStrips) * depth * 16));
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, a + int64_t(r) * depth + group * 4, 4);
      const __m512i x = _mm512_set1_epi32(four);
      for (int s = 0; s < kStrips; ++s) acc[r][s] = _mm512_dpbusd_epi32(acc[r][s], w[s], x);
      if (kHalf) half[r] = _mm256_dpbusd_epi32(half[r], last, _mm512_castsi512_si256(x));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    int32_t* row = out + int64_t(r) * ld_out;
    for (int s = 0; s < kStrips; ++s) _mm512_store_si512(row + s * 16, acc[r][s]);
    if (kHalf) _mm256_store_si256(reinterpret_cast<__m256i*>(row + kStrips * 16), half[r]);
  }
}

template <int kRows>
KF_INLINE void sliced_rows_512(const int8_t* a, const uint8_t* b, int columns, int depth, const int32_t* sums,
                               int32_t* out, int ld_out) {
  // Four strips of 16 columns with four rows fill the registers; a fifth alone would wait for its own sums, half of one
  // finds room beside them.
  const int strips = (columns + 15) / 16;
  for (int s = 0, taken; s < strips; s += taken) {
    const uint8_t* from = b + int64_t(s) * depth * 16;
    int32_t* to = out + s * 16;
    if (strips - s == 5 && columns % 16 > 0 && columns % 16 <= 8) {
      return sliced_products_512<kRows, 4, true>(a, from, depth, sums, to, ld_out);
    }
    taken = strips - s == 5 ? 3 : std::min(strips - s, 4);
    if (taken == 4) sliced_products_512<kRows, 4>(a, from, depth, sums, to, ld_out);
    if (taken == 3) sliced_products_512<kRows, 3>(a, from, depth, sums, to, ld_out);
    if (taken == 2) sliced_products_512<kRows, 2>(a, from, depth, sums, to, ld_out);
    if (taken == 1) sliced_products_512<kRows, 1>(a, from, depth, sums, to, ld_out);
  }
}

template <int kSlices>
KF_INLINE void join_row_512(const SlicedDot& g, int row, int32_t exponent, const int32_t* products, int ld) {
  constexpr int kClasses = kSlices + kWeightSlices - 1;
  for (int j = 0; j < g.n; j += 16) {
    const __mmask16 keep = first_lanes(g.n - j);
    __m512 total = _mm512_setzero_ps();
    for (int rank = 0; rank < kClasses; ++rank) {
      __m512i sum = _mm512_setzero_si512();
      for (int s = 0; s < kSlices; ++s) {
        if (rank - s < 0 || rank - s >= kWeightSlices) continue;
        sum = _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(keep, products + int64_t(s) * ld + (rank - s) * g.n + j));
      }
      const __m512 weight = _mm512_set1_ps(float(int64_t(1) << (8 * (kClasses - 1 - rank))));
      total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), weight, total);  // the product is exact
    }
    const __m512i w_exponent = _mm512_maskz_loadu_epi32(keep, g.w_exponent + j);
    const __m512i bits = _mm512_castps_si512(total), magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(kMagnitude));
    const __m512i places = _mm512_add_epi32(w_exponent, _mm512_set1_epi32(exponent - sliced_unit(kSlices)));
    const __m512i field = _mm512_add_epi32(_mm512_srli_epi32(magnitude, 23), places);
    __m512i moved = _mm512_add_epi32(bits, _mm512_slli_epi32(places, 23));
    moved = _mm512_mask_or_epi32(moved, _mm512_cmpgt_epi32_mask(field, _mm512_set1_epi32(254)),
                                 _mm512_xor_si512(bits, magnitude), _mm512_set1_epi32(kInfinity));
    const __mmask16 kept = _mm512_cmpneq_epi32_mask(magnitude, _mm512_setzero_si512()) &
                           _mm512_cmpge_epi32_mask(field, _mm512_set1_epi32(kSmallestResult));
    moved = _mm512_maskz_mov_epi32(kept, moved);
    const __mmask16 unusable =
        exponent == kUnusable ? __mmask16(0xFFFF) : _mm512_cmpeq_epi32_mask(w_exponent, _mm512_set1_epi32(kUnusable));
    moved = _mm512_mask_mov_epi32(moved, unusable, _mm512_set1_epi32(kNotANumber));
    float* acc = g.acc + row * g.ld_acc + j;
    _mm512_mask_storeu_ps(acc, keep, _mm512_add_ps(_mm512_maskz_loadu_ps(keep, acc), _mm512_castsi512_ps(moved)));
  }
}

template <int kSlices, class T>
int sliced_dot_512(const SlicedDot& g) {
  // Tokens of one product, and of a batch: the cutting of one token need not wait for that of the one before.
  constexpr int kTokens = kSlices == 2 ? 2 : 1, kBatch = 8 * kTokens, kRows = kTokens * kSlices;
  static thread_local Scratch scratch;
  const int depth = (g.k + 63) / 64 * 64, columns = kWeightSlices * g.n, strips = (columns + 15) / 16;
  const int ld = strips * 16;
  if (!scratch.reserve(size_t(ld) * depth + kBatch * kSlices * (size_t(depth) + ld * sizeof(int32_t)) +
                       4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  uint8_t* b = scratch.take<uint8_t>(size_t(ld) * depth);
  int8_t* a = scratch.take<int8_t>(size_t(kBatch) * kSlices * depth);
  int32_t* products = scratch.take<int32_t>(size_t(kBatch) * kSlices * ld);
  std::memset(a, 0, size_t(kBatch) * kSlices * depth);  // what lies beyond k stays zero
  for (int strip = 0; strip < strips; ++strip) {
    const int8_t* rows[16];
    for (int c = 0; c < 16; ++c) {
      const int column = strip * 16 + c;
      rows[c] = column < columns ? g.w[column / g.n] + (column % g.n) * g.ldw : nullptr;
    }
    pack_strip_512(rows, g.k, depth, b + int64_t(strip) * depth * 16);
  }
  for (int row = 0; row < g.m; row += kBatch) {
    int32_t exponents[kBatch], sums[kBatch * kSlices];
    const int tokens = std::min(kBatch, g.m - row);
    const int padded = (tokens + kTokens - 1) / kTokens * kTokens;  // the last token is taken twice
    for (int t = 0; t < padded; ++t) {
      const T* x = static_cast<const T*>(g.x) + (row + std::min(t, tokens - 1)) * g.ldx;
      exponents[t] = cut_row_512<kSlices>(x, g.k, depth, a + int64_t(t) * kSlices * depth, sums + t * kSlices);
    }
    for (int t = 0; t < padded; t += kTokens) {
      sliced_rows_512<kRows>(a + int64_t(t) * kSlices * depth, b, columns, depth, sums + t * kSlices,
                             products + int64_t(t) * kSlices * ld, ld);
    }
    for (int t = 0; t < tokens; ++t) {
      join_row_512<kSlices>(g, row + t, exponents[t], products + int64_t(t) * kSlices * ld, ld);
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif

namespace kf {
namespace {

inline int sliced_dot_accumulate(Isa isa, const SlicedDot& g, int x_slices) {
  if (g.m < 0 || g.n < 0 || g.k < 0 || g.k > 512 || g.k % 32 != 0 || x_slices < 2 || x_slices > 3) return kBadArgument;
  if (isa == Isa::kMissing) return kIsaMissing;
  if (g.m == 0 || g.n == 0) return kOk;
#if defined(KF_X86)
  if (isa >= Isa::kAvx512Bf16) {
    return x_slices == 2 ? sliced_dot_512<2, uint16_t>(g) : sliced_dot_512<3, float>(g);
  }
#endif
  return x_slices == 2 ? sliced_dot_by_gemm<2>(isa, g) : sliced_dot_by_gemm<3>(isa, g);
}

}  // namespace
}  // namespace kf
