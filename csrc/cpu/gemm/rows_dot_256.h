// Dots of rows along their own elements, with AVX2; included by gemm/rows_dot.h.
//
// With slices h, l of one side and H, L of the other, the sums of the two highest ranks only matter as
// 256 hH + (hL + lH), which 32 bits hold: the sum of h (256 H + L) + l H.
#pragma once

#include "core/values_256.h"
#include "core/words_256.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

constexpr int kDotStrip256 = 8;         // rows of b that meet all of a while they are in the first cache
constexpr int64_t kDotSpan256 = 65536;  // elements of a that are kept in the second cache

KF_INLINE __m256i load_row_words(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }

// Elements i to i + 16 of a row of k, zeros beyond its end.
KF_INLINE __m256i elements16(const uint16_t* row, int k, int i) {
  if (i + 16 <= k) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i));
  alignas(32) uint16_t some[16] = {};
  if (i < k) std::memcpy(some, row + i, (k - i) * sizeof(uint16_t));
  return load_row_words(some);
}

// Calls store(i, q, high, low) for each 16 of the `depth` integers of a row's window, zeros beyond its k elements, and
// their slices; returns its exponent. The integers of a row that is not usable are any.
template <class Store>
KF_INLINE int32_t cut_in_words(const uint16_t* row, int k, int depth, Store store) {
  const __m256i magnitude = _mm256_set1_epi16(0x7FFF);
  __m256i largest = _mm256_setzero_si256();
  for (int i = 0; i < k; i += 16) {
    largest = _mm256_max_epu16(largest, _mm256_and_si256(elements16(row, k, i), magnitude));
  }
  const int32_t exponent = sliced_exponent(largest_u16(largest) << 16, 2);
  // Products are exact but where they are below any half: then they round to 0 all the same.
  const __m256 factor = _mm256_set1_ps(kf_f((15 - (exponent == kUnusable ? 0 : exponent) + 127) << 23));
  for (int i = 0; i < depth; i += 16) {
    const __m256i x = elements16(row, k, i);
    const __m256i least = _mm256_set1_epi16(int16_t((kSmallestReadBits >> 16) - 1));
    const __m256i read = _mm256_and_si256(x, _mm256_cmpgt_epi16(_mm256_and_si256(x, magnitude), least));
    const __m256i zero = _mm256_setzero_si256();
    const __m256 first = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, read));
    const __m256 second = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, read));
    const __m256i q = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(first, factor)),
                                         _mm256_cvtps_epi32(_mm256_mul_ps(second, factor)));
    const __m256i high = _mm256_srai_epi16(_mm256_add_epi16(q, _mm256_set1_epi16(128)), 8);
    store(i, q, high, _mm256_sub_epi16(q, _mm256_slli_epi16(high, 8)));
  }
  return exponent;
}

// Sums of the products of a row of a, as words of its two slices, with a row of b. In place, as in RowOfPairs; three
// products at once, so that few loads are asked for beside them.
struct SlicedSums {
  __m256i upper, lowest;
  KF_INLINE SlicedSums() : upper(_mm256_setzero_si256()), lowest(_mm256_setzero_si256()) {}
  KF_INLINE void add(const int16_t* high, const int16_t* low, __m256i q, __m256i b_high, __m256i b_low) {
    __m256i product, l;
    __asm__(
        "vmovdqa %5, %3\n\tvpmaddwd %4, %6, %2\n\tvpaddd %2, %0, %0\n\tvpmaddwd %3, %7, %2\n\tvpmaddwd %3, %8, %3\n\t"
        "vpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
        : "+x"(upper), "+x"(lowest), "=&x"(product), "=&x"(l)
        : "m"(*reinterpret_cast<const __m256i*>(high)), "m"(*reinterpret_cast<const __m256i*>(low)), "x"(q),
          "x"(b_high), "x"(b_low));
  }
};

// The sums of the elements of four vectors.
KF_INLINE __m128i sums4(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

// upper[r], lowest[r]: the sums of kRows rows of a, [2][depth] every `ld` words, with one of b, [3][depth].
template <int kRows>
KF_INLINE void dot_rows(const int16_t* a, int64_t ld, const int16_t* b, int64_t depth, __m128i& upper,
                        __m128i& lowest) {
  SlicedSums r0, r1, r2, r3;
  const int16_t *low = a + depth, *const end = b + depth;
  for (; b != end; a += 16, low += 16, b += 16) {
    const __m256i q = load_row_words(b), b_high = load_row_words(b + depth), b_low = load_row_words(b + 2 * depth);
    r0.add(a, low, q, b_high, b_low);
    if (kRows > 1) r1.add(a + ld, low + ld, q, b_high, b_low);
    if (kRows > 2) r2.add(a + 2 * ld, low + 2 * ld, q, b_high, b_low);
    if (kRows > 2) r3.add(a + 3 * ld, low + 3 * ld, q, b_high, b_low);
  }
  upper = sums4(r0.upper, r1.upper, r2.upper, r3.upper);
  lowest = sums4(r0.lowest, r1.lowest, r2.lowest, r3.lowest);
}

// to[r]: element r of from[0] to from[7].
KF_INLINE void transpose_4x8(const __m128i (&from)[8], __m256i (&to)[4]) {
  __m256i c[4];
  for (int j = 0; j < 4; ++j) c[j] = _mm256_set_m128i(from[j + 4], from[j]);
  const __m256i a = _mm256_unpacklo_epi32(c[0], c[1]), b = _mm256_unpacklo_epi32(c[2], c[3]);
  const __m256i d = _mm256_unpackhi_epi32(c[0], c[1]), e = _mm256_unpackhi_epi32(c[2], c[3]);
  to[0] = _mm256_unpacklo_epi64(a, b);
  to[1] = _mm256_unpackhi_epi64(a, b);
  to[2] = _mm256_unpacklo_epi64(d, e);
  to[3] = _mm256_unpackhi_epi64(d, e);
}

// Rows as words, chunk by chunk.
struct CutWords256 {
  int16_t* words;      // [rows][chunks][slices][depth]
  int32_t* exponents;  // [rows][chunks]
  int chunks, depth;   // a chunk rounded up to 16

  int64_t row(int slices) const { return int64_t(chunks) * slices * depth; }
};

// acc += kRows rows of a with the strip of b that begins at `column`, from `first_chunk` of a on.
template <int kRows>
inline void add_strip_256(const RowsDot& g, const CutWords256& a, const CutWords256& b, int first_chunk, int row,
                          int column) {
  alignas(32) float acc[kRows][kDotStrip256] = {};
  const int columns = std::min(kDotStrip256, g.n - column);
  float* out = g.acc + int64_t(row) * g.ld_acc + column;
  for (int r = 0; r < kRows; ++r) std::memcpy(acc[r], out + r * g.ld_acc, columns * sizeof(float));
  const int64_t depth = a.depth;
  for (int chunk = 0; chunk < b.chunks; ++chunk) {
    __m128i upper[kDotStrip256], lowest[kDotStrip256];
    const int a_chunk = first_chunk + chunk;
    for (int c = 0; c < kDotStrip256; ++c) {
      dot_rows<kRows>(a.words + row * a.row(2) + a_chunk * 2 * depth, a.row(2),
                      b.words + c * b.row(3) + chunk * 3 * depth, depth, upper[c], lowest[c]);
    }
    __m256i by_row[2][4];
    transpose_4x8(upper, by_row[0]);
    transpose_4x8(lowest, by_row[1]);
    alignas(32) int32_t exponents[kDotStrip256];
    for (int c = 0; c < kDotStrip256; ++c) exponents[c] = b.exponents[c * b.chunks + chunk];
    for (int r = 0; r < kRows; ++r) {
      const __m256 joined = _mm256_mul_ps(_mm256_cvtepi32_ps(by_row[0][r]), _mm256_set1_ps(256.0f));
      const __m256 total = _mm256_add_ps(joined, _mm256_cvtepi32_ps(by_row[1][r]));
      const int32_t exponent = a.exponents[(row + r) * a.chunks + a_chunk];
      const __m256 term = scaled_term8(total, exponent, load_words(exponents), CutInTwo::kUnit);
      _mm256_store_ps(acc[r], _mm256_add_ps(_mm256_load_ps(acc[r]), term));
    }
  }
  for (int r = 0; r < kRows; ++r) std::memcpy(out + r * g.ld_acc, acc[r], columns * sizeof(float));
}

// A row's elements, as many chunks as `out` has; store(chunk, i, q, high, low).
template <class Store>
KF_INLINE void cut_chunks_256(const uint16_t* row, int elements, int chunk, int32_t* exponents, const CutWords256& out,
                              Store store) {
  for (int i = 0; i < out.chunks; ++i) {
    exponents[i] = cut_in_words(row + i * chunk, std::min(chunk, elements - i * chunk), out.depth,
                                [&](int at, __m256i q, __m256i high, __m256i low)
                                    KF_INLINE_LAMBDA { store(i, at, q, high, low); });
  }
}

inline void cut_a_256(const RowsDot& g, int start, int elements, const CutWords256& a) {
  for (int r = 0; r < g.m; ++r) {
    int16_t* to = a.words + r * a.row(2);
    cut_chunks_256(g.a + r * g.lda + start, elements, g.chunk, a.exponents + r * a.chunks, a,
                   [&](int chunk, int at, __m256i, __m256i high, __m256i low) KF_INLINE_LAMBDA {
                     store_words(to + (2 * chunk) * a.depth + at, high);
                     store_words(to + (2 * chunk + 1) * a.depth + at, low);
                   });
  }
}

// The rows of b from `column`; beyond the last: again the last.
inline void cut_strip_256(const RowsDot& g, int start, int elements, int column, const CutWords256& b) {
  for (int c = 0; c < kDotStrip256; ++c) {
    const uint16_t* row = g.b + std::min(column + c, g.n - 1) * g.ldb + start;
    int16_t* to = b.words + c * b.row(3);
    const int piece = b.chunks * g.chunk;
    for (int i = 0; i < piece; i += 32) _mm_prefetch(row + piece + i, _MM_HINT_T1);  // what comes next
    cut_chunks_256(row, elements, g.chunk, b.exponents + c * b.chunks, b,
                   [&](int chunk, int at, __m256i q, __m256i high, __m256i low) KF_INLINE_LAMBDA {
                     store_words(to + 3 * chunk * b.depth + at, q);
                     store_words(to + (3 * chunk + 1) * b.depth + at, high);
                     store_words(to + (3 * chunk + 2) * b.depth + at, low);
                   });
  }
}

inline int rows_dot_256(const RowsDot& g) {
  static thread_local Scratch scratch;
  const int chunks = (g.k + g.chunk - 1) / g.chunk, depth = (g.chunk + 15) / 16 * 16;
  const int piece = std::min(chunks, kLongestChunk / g.chunk);  // of b
  // Rows of b are read from end to end, as memory likes it, where all of a can stay in the second cache.
  const int span = int64_t(g.m) * chunks * depth <= kDotSpan256 ? chunks : piece;
  if (!scratch.reserve((size_t(2 * g.m) * span + 3 * kDotStrip256 * piece) * depth * sizeof(int16_t) +
                       (size_t(g.m) * span + kDotStrip256 * piece) * sizeof(int32_t) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  CutWords256 a{scratch.take<int16_t>(size_t(2 * g.m) * span * depth), scratch.take<int32_t>(size_t(g.m) * span), 0,
                depth};
  CutWords256 b{scratch.take<int16_t>(size_t(3 * kDotStrip256) * piece * depth),
                scratch.take<int32_t>(kDotStrip256 * piece), 0, depth};
  for (int from = 0; from < chunks; from += span) {
    a.chunks = std::min(span, chunks - from);
    cut_a_256(g, from * g.chunk, g.k - from * g.chunk, a);
    for (int column = 0; column < g.n; column += kDotStrip256) {
      for (int first = 0; first < a.chunks; first += piece) {
        b.chunks = std::min(piece, a.chunks - first);
        const int start = (from + first) * g.chunk;
        cut_strip_256(g, start, g.k - start, column, b);
        int row = 0;
        for (; g.m - row >= 4; row += 4) add_strip_256<4>(g, a, b, first, row, column);
        if (g.m - row >= 2) {
          add_strip_256<2>(g, a, b, first, row, column);
          row += 2;
        }
        if (g.m - row == 1) add_strip_256<1>(g, a, b, first, row, column);
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
