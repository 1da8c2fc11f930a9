// Dots of rows along their own elements, with AVX2; included by gemm/rows_dot.h.
//
// With slices h, l of one side and H, M, L of the other, the sums of the two highest ranks only matter as
// 256 hH + (hM + lH), which 32 bits hold: the sum of h (256 H + M) + l H. Where the other side has two, L is in M's
// place.
#pragma once

#include "core/values_256.h"
#include "core/words_256.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

constexpr int kDotStrip256 = 8;         // rows of b that meet all of a while they are in the first cache
constexpr int64_t kDotSpan256 = 65536;  // elements of a that are kept in the second cache
template <class T>
constexpr int kPieceOf = sizeof(T) == sizeof(float) ? 256 : 512;  // elements of a row that are cut at a time

// Words of an element of a window: the two highest slices as one, then every slice, highest first.
template <class T>
constexpr int kWordsOf = kSlicesOf<T> + 1;

KF_INLINE __m256i load_row_words(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }

// Calls each(i, from) for every 16 of `depth` elements, zeros beyond the k that a row has.
template <class T, class Each>
KF_INLINE void by_sixteen(const T* row, int k, int depth, Each each) {
  int i = 0;
  for (; i + 16 <= k; i += 16) each(i, row + i);
  for (; i < depth; i += 16) {
    T some[16] = {};
    if (i < k) std::memcpy(some, row + i, (k - i) * sizeof(T));
    each(i, some);
  }
}

// Bits of a row's largest magnitude.
KF_INLINE int32_t largest_magnitude(const uint16_t* row, int k) {
  __m256i largest = _mm256_setzero_si256();
  by_sixteen(row, k, k, [&largest](int, const uint16_t* x) KF_INLINE_LAMBDA {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    largest = _mm256_max_epu16(largest, _mm256_and_si256(words, _mm256_set1_epi16(0x7FFF)));
  });
  return largest_u16(largest) << 16;
}
KF_INLINE int32_t largest_magnitude(const float* row, int k) {
  __m256i largest = _mm256_setzero_si256();
  by_sixteen(row, k, k, [&largest](int, const float* x) KF_INLINE_LAMBDA {
    const __m256 first = magnitude8(load8(x)), second = magnitude8(load8(x + 8));
    largest = _mm256_max_epi32(largest, _mm256_max_epi32(_mm256_castps_si256(first), _mm256_castps_si256(second)));
  });
  return largest_bits_256(largest);
}

// 16 elements as they are read, times a factor, rounded to integers.
struct Integers16 {
  __m256i first, second;
};
KF_INLINE Integers16 integers_of(__m256 first, __m256 second, __m256 factor) {
  return {_mm256_cvtps_epi32(_mm256_mul_ps(first, factor)), _mm256_cvtps_epi32(_mm256_mul_ps(second, factor))};
}

KF_INLINE void cut_words(const uint16_t* x, __m256 factor, __m256i (&words)[3]) {
  const __m256i zero = _mm256_setzero_si256(), least = _mm256_set1_epi16(int16_t((kSmallestReadBits >> 16) - 1));
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7FFF));
  const __m256i read = _mm256_and_si256(codes, _mm256_cmpgt_epi16(magnitude, least));
  // Four of each half: packs brings them back in order.
  const Integers16 q = integers_of(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, read)),
                                   _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, read)), factor);
  words[0] = _mm256_packs_epi32(q.first, q.second);
  words[1] = _mm256_srai_epi16(_mm256_add_epi16(words[0], _mm256_set1_epi16(128)), 8);
  words[2] = _mm256_sub_epi16(words[0], _mm256_slli_epi16(words[1], 8));
}
KF_INLINE void cut_words(const float* x, __m256 factor, __m256i (&words)[4]) {
  const Integers16 q =
      integers_of(zero_below8(load8(x), kSmallestRead), zero_below8(load8(x + 8), kSmallestRead), factor);
  const __m256i first = high_slice(q.first), second = high_slice(q.second);
  words[0] = words_of(first, second);
  words[1] = _mm256_srai_epi16(_mm256_add_epi16(words[0], _mm256_set1_epi16(128)), 8);
  words[2] = _mm256_sub_epi16(words[0], _mm256_slli_epi16(words[1], 8));
  words[3] = words_of(low_slice(q.first, first), low_slice(q.second, second));
}

// Calls store(i, words) for every 16 of the `depth` elements of a row's window, zeros beyond its k; returns its
// exponent. The words of a row that is not usable are any.
template <class T, class Store>
KF_INLINE int32_t cut_in_words(const T* row, int k, int depth, Store store) {
  const int32_t exponent = sliced_exponent(largest_magnitude(row, k), kSlicesOf<T>);
  // Products are exact but where they are below any half: then they round to 0 all the same.
  const int32_t places = 8 * kSlicesOf<T> - 1 - (exponent == kUnusable ? 0 : exponent);
  const __m256 factor = _mm256_set1_ps(kf_f((places + 127) << 23));
  by_sixteen(row, k, depth, [&](int i, const T* x) KF_INLINE_LAMBDA {
    __m256i words[kWordsOf<T>];
    cut_words(x, factor, words);
    store(i, words);
  });
  return exponent;
}

// Sums of the products of a row of a, as words of its two slices, with a row of b: of the two highest ranks, then of
// each rank. In place, as in RowOfPairs.
template <class T>
struct SlicedSums;
template <>
struct SlicedSums<uint16_t> {
  static constexpr int kRows = 4;  // as many as registers hold
  __m256i rank[2];
  KF_INLINE SlicedSums() { rank[0] = rank[1] = _mm256_setzero_si256(); }
  // Three products at once, so that few loads are asked for beside them.
  KF_INLINE void add(const int16_t* high, const int16_t* low, const __m256i (&b)[3]) {
    __m256i product, l;
    __asm__(
        "vmovdqa %5, %3\n\tvpmaddwd %4, %6, %2\n\tvpaddd %2, %0, %0\n\tvpmaddwd %3, %7, %2\n\tvpmaddwd %3, %8, %3\n\t"
        "vpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
        : "+x"(rank[0]), "+x"(rank[1]), "=&x"(product), "=&x"(l)
        : "m"(*reinterpret_cast<const __m256i*>(high)), "m"(*reinterpret_cast<const __m256i*>(low)), "x"(b[0]),
          "x"(b[1]), "x"(b[2]));
  }
};
template <>
struct SlicedSums<float> {
  static constexpr int kRows = 2;
  __m256i rank[3];
  KF_INLINE SlicedSums() { rank[0] = rank[1] = rank[2] = _mm256_setzero_si256(); }
  KF_INLINE void add(const int16_t* high, const int16_t* low, const __m256i (&b)[4]) {
    const __m256i h = load_row_words(high), l = load_row_words(low);
    RowOfPairs::add(rank[0], h, b[0]);
    RowOfPairs::add(rank[0], l, b[1]);
    RowOfPairs::add(rank[1], h, b[3]);
    RowOfPairs::add(rank[1], l, b[2]);
    RowOfPairs::add(rank[2], l, b[3]);
  }
};

// The sums of the elements of four vectors.
KF_INLINE __m128i sums4(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

// sums[rank][r]: of kRows rows of a, [2][depth] every `ld` words, with one of b, [words][depth].
template <class T, int kRows>
KF_INLINE void dot_rows(const int16_t* a, int64_t ld, const int16_t* b, int64_t depth, __m128i (&sums)[kSlicesOf<T>]) {
  SlicedSums<T> r0, r1, r2, r3;
  const int16_t *low = a + depth, *const end = b + depth;
  for (; b != end; a += 16, low += 16, b += 16) {
    __m256i words[kWordsOf<T>];
    for (int w = 0; w < kWordsOf<T>; ++w) words[w] = load_row_words(b + w * depth);
    r0.add(a, low, words);
    if (kRows > 1) r1.add(a + ld, low + ld, words);
    if (kRows > 2) r2.add(a + 2 * ld, low + 2 * ld, words);
    if (kRows > 2) r3.add(a + 3 * ld, low + 3 * ld, words);
  }
  for (int s = 0; s < kSlicesOf<T>; ++s) sums[s] = sums4(r0.rank[s], r1.rank[s], r2.rank[s], r3.rank[s]);
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
template <class T, int kRows>
inline void add_strip_256(const RowsDot<T>& g, const CutWords256& a, const CutWords256& b, int first_chunk, int row,
                          int column) {
  constexpr int kRanks = kSlicesOf<T>;  // the two highest are one
  alignas(32) float acc[kRows][kDotStrip256] = {};
  const int columns = std::min(kDotStrip256, g.n - column);
  float* out = g.acc + int64_t(row) * g.ld_acc + column;
  for (int r = 0; r < kRows; ++r) std::memcpy(acc[r], out + r * g.ld_acc, columns * sizeof(float));
  const int64_t depth = a.depth;
  for (int chunk = 0; chunk < b.chunks; ++chunk) {
    __m128i sums[kRanks][kDotStrip256];
    const int a_chunk = first_chunk + chunk;
    for (int c = 0; c < kDotStrip256; ++c) {
      __m128i found[kRanks];
      dot_rows<T, kRows>(a.words + row * a.row(2) + a_chunk * 2 * depth, a.row(2),
                         b.words + c * b.row(kWordsOf<T>) + chunk * kWordsOf<T> * depth, depth, found);
      for (int s = 0; s < kRanks; ++s) sums[s][c] = found[s];
    }
    __m256i by_row[kRanks][4];
    for (int s = 0; s < kRanks; ++s) transpose_4x8(sums[s], by_row[s]);
    alignas(32) int32_t exponents[kDotStrip256];
    for (int c = 0; c < kDotStrip256; ++c) exponents[c] = b.exponents[c * b.chunks + chunk];
    for (int r = 0; r < kRows; ++r) {
      __m256 total = _mm256_cvtepi32_ps(by_row[0][r]);
      for (int s = 1; s < kRanks; ++s) {
        total = _mm256_add_ps(_mm256_mul_ps(total, _mm256_set1_ps(256.0f)), _mm256_cvtepi32_ps(by_row[s][r]));
      }
      const int32_t exponent = a.exponents[(row + r) * a.chunks + a_chunk];
      const __m256 term = scaled_term8(total, exponent, load_words(exponents), CutOfRows<T>::kUnit);
      _mm256_store_ps(acc[r], _mm256_add_ps(_mm256_load_ps(acc[r]), term));
    }
  }
  for (int r = 0; r < kRows; ++r) std::memcpy(out + r * g.ld_acc, acc[r], columns * sizeof(float));
}

// A row's elements, as many chunks as `out` has, the words from kFirst on to out.words of `row`.
template <class T, int kFirst>
KF_INLINE void cut_chunks_256(const T* elements, int k, int chunk, int row, const CutWords256& out) {
  constexpr int kWords = kWordsOf<T> - kFirst;
  for (int i = 0; i < out.chunks; ++i) {
    int16_t* to = out.words + row * out.row(kWords) + int64_t(i) * kWords * out.depth;
    out.exponents[row * out.chunks + i] = cut_in_words(elements + i * chunk, std::min(chunk, k - i * chunk), out.depth,
                                                       [&](int at, const auto& words) KF_INLINE_LAMBDA {
                                                         for (int w = 0; w < kWords; ++w)
                                                           store_words(to + w * out.depth + at, words[kFirst + w]);
                                                       });
  }
}

template <class T>
int rows_dot_256(const RowsDot<T>& g) {
  static thread_local Scratch scratch;
  constexpr int kWords = kWordsOf<T>;
  const int chunks = (g.k + g.chunk - 1) / g.chunk, depth = (g.chunk + 15) / 16 * 16;
  const int piece = std::max(1, std::min(chunks, kPieceOf<T> / g.chunk));  // of b
  // Rows of b are read from end to end, as memory likes it, where all of a can stay in the second cache.
  const int span = int64_t(g.m) * chunks * depth <= kDotSpan256 ? chunks : piece;
  if (!scratch.reserve((size_t(2 * g.m) * span + kWords * kDotStrip256 * piece) * depth * sizeof(int16_t) +
                       (size_t(g.m) * span + kDotStrip256 * piece) * sizeof(int32_t) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  CutWords256 a{scratch.take<int16_t>(size_t(2 * g.m) * span * depth), scratch.take<int32_t>(size_t(g.m) * span), 0,
                depth};
  CutWords256 b{scratch.take<int16_t>(size_t(kWords * kDotStrip256) * piece * depth),
                scratch.take<int32_t>(kDotStrip256 * piece), 0, depth};
  for (int from = 0; from < chunks; from += span) {
    a.chunks = std::min(span, chunks - from);
    for (int r = 0; r < g.m; ++r) {
      const int start = from * g.chunk;
      cut_chunks_256<uint16_t, 1>(g.a + r * g.lda + start, g.k - start, g.chunk, r, a);
    }
    for (int column = 0; column < g.n; column += kDotStrip256) {
      for (int first = 0; first < a.chunks; first += piece) {
        b.chunks = std::min(piece, a.chunks - first);
        const int start = (from + first) * g.chunk, elements = b.chunks * g.chunk;
        for (int c = 0; c < kDotStrip256; ++c) {  // beyond the last row: again the last
          const T* row = g.b + std::min(column + c, g.n - 1) * g.ldb + start;
          for (int i = 0; i < elements; i += 64 / sizeof(T))
            _mm_prefetch(row + elements + i, _MM_HINT_T1);  // what comes next
          cut_chunks_256<T, 0>(row, g.k - start, g.chunk, c, b);
        }
        int row = 0;
        if constexpr (SlicedSums<T>::kRows == 4) {
          for (; g.m - row >= 4; row += 4) add_strip_256<T, 4>(g, a, b, first, row, column);
        }
        for (; g.m - row >= 2; row += 2) add_strip_256<T, 2>(g, a, b, first, row, column);
        if (g.m - row == 1) add_strip_256<T, 1>(g, a, b, first, row, column);
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
