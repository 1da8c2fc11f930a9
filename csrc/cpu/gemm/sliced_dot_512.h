// Dots of rows that are cut on the way, with AVX-512 VNNI; included by gemm/sliced_dot.h.
//
// Slices of rows are kept as unsigned bytes, 128 too large: what that adds to a dot is 128 times the sum of the
// weights' column, which is known when the weights are packed.
#pragma once

#include "core/transpose_512.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

constexpr int kTokens = 4;  // rows that are multiplied side by side
constexpr int kBatch = 16;  // rows that are cut before: none need wait for the one before it
constexpr int kSpan = 64;   // elements that are cut together

KF_INLINE __mmask16 first_lanes(int count) {
  return count >= 16 ? __mmask16(0xFFFF) : __mmask16((1u << std::max(count, 0)) - 1);
}

KF_INLINE int32_t largest_bits_512(const float* x, int k) {
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < k; i += 16) {  // k is a multiple of 32
    const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(x + i));
    largest = _mm512_max_epi32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(kMagnitude)));
  }
  return _mm512_reduce_max_epi32(largest);
}

KF_INLINE int32_t largest_bits_512(const uint16_t* x, int k) {
  __m512i largest = _mm512_setzero_si512();
  for (int i = 0; i < k; i += 32) {
    const __m512i words = _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi16(0x7FFF));
    largest = _mm512_max_epu16(largest, words);
  }
  const __m512i high = _mm512_srli_epi32(largest, 16), low = _mm512_and_si512(largest, _mm512_set1_epi32(0xFFFF));
  return _mm512_reduce_max_epi32(_mm512_max_epi32(high, low)) << 16;
}

// 32 elements as float32: those of even index, those of odd.
KF_INLINE void load_pairs_512(const uint16_t* x, __m512& even, __m512& odd) {
  const __m512i words = _mm512_loadu_si512(x);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xFFFF0000))));
}

KF_INLINE void load_pairs_512(const float* x, __m512& even, __m512& odd) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + 16);
  even = _mm512_permutex2var_ps(first, evens, second);
  odd = _mm512_permutex2var_ps(first, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), second);
}

template <bool kReadSmall>
KF_INLINE __m512i window_512(__m512 value, __m512 factor, __m512i bias) {
  // Exact but where the product is below any half: then it rounds to 0 all the same.
  __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(value, factor));
  if (kReadSmall) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(kMagnitude));
    q = _mm512_maskz_mov_epi32(_mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(kSmallestReadBits)), q);
  }
  return _mm512_add_epi32(q, bias);
}

// As cut_row, slices 128 too large and in the order of interleave_512; what lies beyond k is what it was.
template <class Rows, bool kReadSmall>
KF_INLINE void cut_elements_512(const typename Rows::Stored* x, int k, int64_t distance, int32_t exponent,
                                uint8_t* slices) {
  constexpr int kSlices = Rows::kSlices;
  constexpr __mmask32 kOddWords = 0xAAAAAAAA;
  constexpr __mmask64 kOddBytes = 0xAAAAAAAAAAAAAAAA;
  const __m512 factor = _mm512_set1_ps(kf_f((8 * kSlices - 1 - exponent + 127) << 23));
  const __m512i bias = _mm512_set1_epi32(kSlices == 2 ? 0x8080 : 0x808080);
  for (int i = 0; i < k; i += kSpan) {
    __m512 value[4] = {};  // even and odd elements of the first half, and of the second
    load_pairs_512(x + i, value[0], value[1]);
    if (i + 32 < k) load_pairs_512(x + i + 32, value[2], value[3]);
    __m512i q[4];
    for (int j = 0; j < 4; ++j) q[j] = window_512<kReadSmall>(value[j], factor, bias);
    const __m512i first = _mm512_mask_mov_epi16(q[0], kOddWords, _mm512_slli_epi32(q[1], 16));
    const __m512i second = _mm512_mask_mov_epi16(q[2], kOddWords, _mm512_slli_epi32(q[3], 16));
    uint8_t* low = slices + (kSlices - 1) * distance + i;
    _mm512_store_si512(low, _mm512_mask_mov_epi8(first, kOddBytes, _mm512_slli_epi16(second, 8)));
    _mm512_store_si512(low - distance, _mm512_mask_mov_epi8(_mm512_srli_epi16(first, 8), kOddBytes, second));
    if (kSlices == 3) {
      const __m512i third = _mm512_mask_mov_epi16(_mm512_srli_epi32(q[0], 16), kOddWords, q[1]);
      const __m512i fourth = _mm512_mask_mov_epi16(_mm512_srli_epi32(q[2], 16), kOddWords, q[3]);
      _mm512_store_si512(slices + i, _mm512_mask_mov_epi8(third, kOddBytes, _mm512_slli_epi16(fourth, 8)));
    }
  }
}

template <class Rows>
KF_INLINE int32_t cut_row_512(const typename Rows::Stored* x, int k, int64_t distance, uint8_t* slices) {
  const int32_t exponent = sliced_exponent(largest_bits_512(x, k), Rows::kSlices);
  if (exponent == kUnusable) return exponent;  // its dots are NaN whatever the slices
  if (exponent > 8 * Rows::kSlices - 50) {     // what reads as zero rounds to zero
    cut_elements_512<Rows, false>(x, k, distance, exponent, slices);
  } else {
    cut_elements_512<Rows, true>(x, k, distance, exponent, slices);
  }
  return exponent;
}

// The order in which cut_elements_512 leaves 64 elements: 0, 32, 1, 33, ...
KF_INLINE __m512i interleave_512(__m512i x) {
  const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(x));
  const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(x, 1));
  return _mm512_or_si512(low, _mm512_slli_epi16(high, 8));
}

// b: 16 columns in groups of four k; correction: -128 times their sums.
KF_INLINE void pack_strip_512(const int8_t* const rows[16], int k, int depth, int8_t* b, int32_t* correction) {
  __m512i sums = _mm512_setzero_si512();
  for (int first = 0; first < depth; first += kSpan) {
    const __mmask64 keep = k - first >= 64 ? ~__mmask64(0) : (__mmask64(1) << std::max(k - first, 0)) - 1;
    __m512i x[16], y[16];
    for (int c = 0; c < 16; ++c) {
      const bool none = rows[c] == nullptr;
      x[c] = interleave_512(_mm512_maskz_loadu_epi8(none ? 0 : keep, none ? rows[0] : rows[c] + first));
    }
    transpose_words_512(x, y);
    for (int g = 0; g < 16; ++g) {
      _mm512_store_si512(b + (first / 4 + g) * 64, y[g]);
      sums = _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(char(0x80)), y[g]);
    }
  }
  _mm512_store_si512(correction, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
}

// kStrips strips of 16 columns with kTokens rows; with kHalf the first 8 columns of one more.
template <int kStrips, bool kHalf>
KF_INLINE void sliced_products_512(const uint8_t* a, const int8_t* b, int depth, const int32_t* correction,
                                   int32_t* out, int ld_out) {
  __m512i acc[kTokens][kStrips + 1];
  __m256i half[kTokens];
  for (int r = 0; r < kTokens; ++r) {
    for (int s = 0; s < kStrips; ++s) acc[r][s] = _mm512_load_si512(correction + s * 16);
    if (kHalf) half[r] = _mm256_load_si256(reinterpret_cast<const __m256i*>(correction + kStrips * 16));
  }
  for (int group = 0; group < depth / 4; ++group) {
    const int8_t* columns = b + group * 64;
    __m512i w[kStrips + 1];
    for (int s = 0; s < kStrips; ++s) w[s] = _mm512_load_si512(columns + int64_t(s) * depth * 16);
    __m256i last = _mm256_setzero_si256();
    if (kHalf) last = _mm256_load_si256(reinterpret_cast<const __m256i*>(columns + int64_t(kStrips) * depth * 16));
    for (int r = 0; r < kTokens; ++r) {
      int32_t four;
      std::memcpy(&four, a + int64_t(r) * depth + group * 4, 4);
      const __m512i x = _mm512_set1_epi32(four);
      for (int s = 0; s < kStrips; ++s) acc[r][s] = _mm512_dpbusd_epi32(acc[r][s], x, w[s]);
      if (kHalf) half[r] = _mm256_dpbusd_epi32(half[r], _mm512_castsi512_si256(x), last);
    }
  }
  for (int r = 0; r < kTokens; ++r) {
    int32_t* row = out + int64_t(r) * ld_out;
    for (int s = 0; s < kStrips; ++s) _mm512_store_si512(row + s * 16, acc[r][s]);
    if (kHalf) _mm256_store_si256(reinterpret_cast<__m256i*>(row + kStrips * 16), half[r]);
  }
}

// One slice of kTokens rows with the first `columns` columns.
KF_INLINE void sliced_rows_512(const uint8_t* a, const int8_t* b, int columns, int depth, const int32_t* correction,
                               int32_t* out, int ld_out) {
  // Four strips with four rows fill the registers; half of a strip finds room beside them, a fifth alone would wait for
  // its own sums.
  const bool half = columns % 16 > 0 && columns % 16 <= 8;
  const int strips = half ? columns / 16 : (columns + 15) / 16;
  int s = 0;
  const auto take = [&](auto products, int taken) {
    products(a, b + int64_t(s) * depth * 16, depth, correction + s * 16, out + s * 16, ld_out);
    s += taken;
  };
  while (strips - s > 5 || (half && strips - s > 4)) take(sliced_products_512<4, false>, 4);
  if (half) {
    if (strips - s == 4) return take(sliced_products_512<4, true>, 4);
    if (strips - s == 3) return take(sliced_products_512<3, true>, 3);
    if (strips - s == 2) return take(sliced_products_512<2, true>, 2);
    if (strips - s == 1) return take(sliced_products_512<1, true>, 1);
    return take(sliced_products_512<0, true>, 0);
  }
  if (strips - s == 5) take(sliced_products_512<3, false>, 3);
  if (strips - s == 4) return take(sliced_products_512<4, false>, 4);
  if (strips - s == 3) return take(sliced_products_512<3, false>, 3);
  if (strips - s == 2) return take(sliced_products_512<2, false>, 2);
  if (strips - s == 1) return take(sliced_products_512<1, false>, 1);
}

// `products`: of the row's highest slice; the next slice's are `distance` further.
template <class Rows>
KF_INLINE void join_row_512(const SlicedDot& g, int row, int32_t exponent, const int32_t* products, int64_t distance) {
  for (int j = 0; j < g.n; j += 16) {
    const __mmask16 keep = first_lanes(g.n - j);
    __m512 total = _mm512_setzero_ps();
    for (int rank = 0; rank < Rows::kRanks; ++rank) {
      __m512i sum = _mm512_setzero_si512();
      for (int s = 0; s < Rows::kSlices; ++s) {
        if (rank - s < 0 || rank - s >= kWeightSlices) continue;
        const int32_t* from = products + s * distance + (rank - s) * g.n + j;
        sum = _mm512_add_epi32(sum, _mm512_maskz_loadu_epi32(keep, from));
      }
      const __m512 weight = _mm512_set1_ps(float(int64_t(1) << (8 * (Rows::kRanks - 1 - rank))));
      total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), weight, total);  // the product is exact
    }
    const __m512i w_exponent = _mm512_maskz_loadu_epi32(keep, g.w_exponent + j);
    const __m512i bits = _mm512_castps_si512(total), magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(kMagnitude));
    const __m512i places = _mm512_add_epi32(w_exponent, _mm512_set1_epi32(exponent - Rows::kUnit));
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

template <class Rows>
int sliced_dot_512(const SlicedDot& g) {
  constexpr int kSlices = Rows::kSlices;
  static thread_local Scratch scratch;
  const int depth = (g.k + kSpan - 1) / kSpan * kSpan, columns = kWeightSlices * g.n, strips = (columns + 15) / 16;
  const int ld = strips * 16;
  const int64_t slice = int64_t(kBatch) * depth, block = int64_t(kBatch) * ld;
  if (!scratch.reserve(size_t(ld) * (depth + sizeof(int32_t)) + kSlices * (slice + block * sizeof(int32_t)) +
                       4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  int8_t* b = scratch.take<int8_t>(size_t(ld) * depth);
  int32_t* correction = scratch.take<int32_t>(ld);
  uint8_t* a = scratch.take<uint8_t>(size_t(kSlices) * slice);         // [slice][token][depth]
  int32_t* products = scratch.take<int32_t>(size_t(kSlices) * block);  // [slice][token][ld]
  for (int strip = 0; strip < strips; ++strip) {
    const int8_t* rows[16];
    for (int c = 0; c < 16; ++c) {
      const int column = strip * 16 + c;
      rows[c] = column < columns ? g.w[column / g.n] + (column % g.n) * g.ldw : nullptr;
    }
    pack_strip_512(rows, g.k, depth, b + int64_t(strip) * depth * 16, correction + strip * 16);
  }
  for (int row = 0; row < g.m; row += kBatch) {
    int32_t exponents[kBatch];
    const int tokens = std::min(kBatch, g.m - row);
    for (int t = 0; t < tokens; ++t) {
      const auto* x = static_cast<const typename Rows::Stored*>(g.x) + (row + t) * g.ldx;
      exponents[t] = cut_row_512<Rows>(x, g.k, slice, a + int64_t(t) * depth);
    }
    for (int t = 0; t < tokens; t += kTokens) {  // rows beyond the last are whatever they were
      for (int s = 0; s < kSlices; ++s) {
        sliced_rows_512(a + s * slice + int64_t(t) * depth, b, Rows::met(s) * g.n, depth, correction,
                        products + s * block + int64_t(t) * ld, ld);
      }
    }
    for (int t = 0; t < tokens; ++t) join_row_512<Rows>(g, row + t, exponents[t], products + int64_t(t) * ld, block);
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
