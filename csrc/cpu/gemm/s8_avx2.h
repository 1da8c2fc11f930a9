// The exact int8 dot by AVX2: both operands are widened to 16 bits when they are packed, vpmaddwd sums two k at a time.
#pragma once

#include "core/words_256.h"
#include "gemm/s8.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

constexpr int kGemmStripAvx2 = 16;  // columns of a tile
constexpr int kGemmStepAvx2 = 16;   // k is padded to a multiple of this

// `count` bytes, at most 16, and zeros.
KF_INLINE __m128i some_bytes(const int8_t* from, int count) {
  if (count >= 16) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  alignas(16) int8_t bytes[16] = {};
  if (count > 0) std::memcpy(bytes, from, count);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

KF_INLINE void store_widened(int32_t* to, __m128i bytes) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepi8_epi16(bytes));
}

// 16 columns from `col` on, k from `first` on: out [depth / 2][16] pairs.
inline void pack_strip_avx2(const GemmS8& g, int col, int first, int k, int depth, int32_t* out) {
  const int n = std::min(kGemmStripAvx2, g.n - col);
  if (g.trans_b) {
    for (int c = 0; c < kGemmStripAvx2; c += 8) {
      for (int i = 0; i < depth; i += 16) {
        __m128i rows[8], pairs[8];
        for (int r = 0; r < 8; ++r) {
          const bool present = c + r < n;
          rows[r] = some_bytes(present ? g.b + (col + c + r) * g.ldb + first + i : nullptr, present ? k - i : 0);
        }
        transpose_words_8(rows, pairs);
        for (int w = 0; w < 8; ++w) store_widened(out + (i / 2 + w) * kGemmStripAvx2 + c, pairs[w]);
      }
    }
    return;
  }
  for (int i = 0; i < depth; i += 2) {
    const int8_t* from = g.b + (first + i) * g.ldb + col;
    const __m128i even = some_bytes(from, i < k ? n : 0), odd = some_bytes(from + g.ldb, i + 1 < k ? n : 0);
    store_widened(out + i / 2 * kGemmStripAvx2, _mm_unpacklo_epi8(even, odd));
    store_widened(out + i / 2 * kGemmStripAvx2 + 8, _mm_unpackhi_epi8(even, odd));
  }
}

// Rows of a product in packed form, and where their results go.
struct GemmRowsAvx2 {
  const int32_t *a, *b;
  int64_t pairs;  // of k
  int32_t* c;
  int64_t ldc;
  int rows, columns;
  bool clear;
};

// c (+)= kRows rows from `row` on, as far as there are so many.
template <int kRows>
KF_INLINE void add_tile_avx2(const GemmRowsAvx2& x, int row) {
  __m256i total[kRows][2];
  multiply_tile({x.a + row * x.pairs, x.pairs, 1}, x.b, kGemmStripAvx2, x.pairs, total);
  for (int r = 0; r < kRows && row + r < x.rows; ++r) {
    int32_t* c = x.c + (row + r) * x.ldc;
    if (x.columns == kGemmStripAvx2) {
      for (int s = 0; s < 2; ++s) {
        __m256i* to = reinterpret_cast<__m256i*>(c + 8 * s);
        _mm256_storeu_si256(to, x.clear ? total[r][s] : _mm256_add_epi32(_mm256_loadu_si256(to), total[r][s]));
      }
      continue;
    }
    alignas(32) uint32_t sums[kGemmStripAvx2];
    for (int s = 0; s < 2; ++s) _mm256_store_si256(reinterpret_cast<__m256i*>(sums + 8 * s), total[r][s]);
    for (int j = 0; j < x.columns; ++j) c[j] = int32_t((x.clear ? 0 : uint32_t(c[j])) + sums[j]);
  }
}

inline int gemm_s8_avx2(const GemmS8& g) {
  constexpr int kDepthChunk = 1024, kRowChunk = 252;
  if (g.k == 0 && g.clear) {
    for (int r = 0; r < g.m; ++r) std::fill_n(g.c + r * g.ldc, g.n, 0);
  }
  const auto padded = [](int size, int to) { return (size + to - 1) / to * to; };
  const int depth_max = padded(std::min(g.k, kDepthChunk), kGemmStepAvx2),
            rows_max = padded(std::min(g.m, kRowChunk), 2);
  Scratch& scratch = thread_scratch();
  const size_t words = size_t(rows_max + kGemmStripAvx2) * depth_max;
  if (!scratch.reserve(2 * words + 2 * Scratch::kAlignment)) return kOutOfMemory;
  int32_t* a = scratch.take<int32_t>(size_t(rows_max) * depth_max / 2);
  int32_t* b = scratch.take<int32_t>(size_t(kGemmStripAvx2) * depth_max / 2);
  for (int first = 0; first < g.k; first += kDepthChunk) {
    const int k = std::min(kDepthChunk, g.k - first), depth = padded(k, kGemmStepAvx2), pairs = depth / 2;
    for (int row = 0; row < g.m; row += kRowChunk) {
      const int m = std::min(kRowChunk, g.m - row);
      for (int r = 0; r < padded(m, 2); ++r) {
        const int8_t* from = g.a + (row + std::min(r, m - 1)) * g.lda + first;
        for (int i = 0; i < depth; i += 16) {
          store_widened(a + int64_t(r) * pairs + i / 2, some_bytes(from + i, r < m ? k - i : 0));
        }
      }
      for (int col = 0; col < g.n; col += kGemmStripAvx2) {
        pack_strip_avx2(g, col, first, k, depth, b);
        const GemmRowsAvx2 x{
            a, b, pairs, g.c + row * g.ldc + col, g.ldc, m, std::min(kGemmStripAvx2, g.n - col), g.clear && first == 0};
        in_tiles(m, [&](auto rows, int r) KF_INLINE_LAMBDA { add_tile_avx2<rows()>(x, r); });
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
