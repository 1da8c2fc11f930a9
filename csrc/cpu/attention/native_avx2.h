// One chunk of attention in float32 by AVX2: native mode, close to the definition instead of equal to it.
//
// Products of bfloat16 are exact in float32; sums are rounded, probabilities are not.
#pragma once

#include "attention/avx2.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

// Columns of queries, strips of 16: [width][16].
inline void pack_queries_f32(const AttentionChunk& x, const uint16_t* queries, int heads, float* out) {
  for (int i = 0; i < heads; i += 8) {
    float* strip = out + int64_t(i / 16) * 16 * x.width + i % 16;
    const int count = std::max(0, std::min(8, x.heads - i));
    for (int k = 0; k < x.width; k += 8) {
      __m128i rows[8], columns[8];
      for (int r = 0; r < 8; ++r) {
        const uint16_t* from = queries + int64_t(i + r) * x.width + k;
        rows[r] = r < count ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)) : _mm_setzero_si128();
      }
      transpose_words_8(rows, columns);
      for (int w = 0; w < 8; ++w) {
        const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(columns[w]), 16);
        _mm256_store_ps(strip + int64_t(k + w) * kStripAvx2, _mm256_castsi256_ps(bits));
      }
    }
  }
}

struct NativeAttentionAvx2 {
  const AttentionChunk& x;
  int n, heads, rows;                   // visible entries; heads and entries with what fills tiles up
  int64_t ld;                           // of the entries, so that rows begin in different sets of the cache
  float *q = nullptr, *keys = nullptr;  // strips of 16 heads; entries [rows][ld]
  float* p = nullptr;                   // [rows][heads], scores, then weights
  float *chunk_m = nullptr, *chunk_l = nullptr, *kept = nullptr, *added = nullptr;

  template <int kRows>
  void score_rows(const float* columns, int j, int i) {
    __m256 total[kRows][2];
    multiply_tile({keys + j * ld, ld, 1}, columns, kStripAvx2, x.width, total);
    for (int r = 0; r < kRows; ++r) {
      for (int s = 0; s < 2; ++s) {
        _mm256_store_ps(p + int64_t(j + r) * heads + i + 8 * s, _mm256_mul_ps(total[r][s], _mm256_set1_ps(x.factor)));
      }
    }
  }

  void score() {
    for (int i = 0; i < heads; i += kStripAvx2) {
      const float* columns = q + int64_t(i) * x.width;
      in_tiles(rows, [&](auto n, int j) KF_INLINE_LAMBDA { score_rows<n()>(columns, j, i); });
    }
  }

  // Weights of eight heads from i on; a head with a score that is not finite becomes NaN.
  void weigh(int i) {
    __m256 top = _mm256_set1_ps(-kLargestScore), unusable = _mm256_setzero_ps(), total = _mm256_setzero_ps();
    for (int j = 0; j < n; ++j) {
      const __m256 t = _mm256_load_ps(p + int64_t(j) * heads + i);
      unusable = _mm256_or_ps(unusable, _mm256_cmp_ps(_mm256_sub_ps(t, t), _mm256_setzero_ps(), _CMP_NEQ_UQ));
      top = _mm256_max_ps(top, t);
    }
    top = _mm256_andnot_ps(unusable, top);
    for (int j = 0; j < n; ++j) {
      float* at = p + int64_t(j) * heads + i;
      const __m256 weight = exp2_of_nonpositive8(_mm256_sub_ps(_mm256_load_ps(at), top));
      total = _mm256_add_ps(total, weight);
      _mm256_store_ps(at, weight);
    }
    const __m256 sum = _mm256_mul_ps(total, _mm256_set1_ps(kWeightOne));
    _mm256_store_ps(chunk_m + i, top);
    _mm256_store_ps(chunk_l + i, _mm256_blendv_ps(sum, _mm256_set1_ps(kf_f(kNanBits)), unusable));
  }

  template <int kRows>
  void add_rows(int i, int d) {
    __m256 total[kRows][2];
    multiply_tile({p + i, 1, heads}, keys + d, ld, n, total);
    for (int r = 0; r < kRows; ++r) {
      const __m256 a = _mm256_set1_ps(kept[i + r]), b = _mm256_set1_ps(added[i + r] * kWeightOne);
      for (int s = 0; s < 2; ++s) {
        float* o = x.o + (i + r) * x.ld_o + d + 8 * s;
        const __m256 old = x.fresh ? _mm256_setzero_ps() : _mm256_mul_ps(_mm256_loadu_ps(o), a);
        _mm256_storeu_ps(o, _mm256_fmadd_ps(total[r][s], b, old));
      }
    }
  }

  void add() {
    for (int d = 0; d < x.width; d += kStripAvx2) {
      in_tiles(x.heads, [&](auto n, int i) KF_INLINE_LAMBDA { add_rows<n()>(i, d); });
    }
  }
};

inline int attention_chunk_native_avx2(const AttentionChunk& x, const uint16_t* queries) {
  int at[kChunk];
  const int n = x.visible(at), width = x.width;
  if (n == 0) return kOk;
  const int heads = (x.heads + 15) / 16 * 16, rows = (n + 1) / 2 * 2;
  const int64_t ld = width + 16;
  Scratch& scratch = thread_scratch();
  const size_t floats = size_t(heads) * width + rows * ld + size_t(rows) * heads + 4 * heads;
  if (!scratch.reserve(4 * floats + 8 * Scratch::kAlignment)) return kOutOfMemory;
  NativeAttentionAvx2 chunk{x, n, heads, rows, ld};
  chunk.q = scratch.take<float>(int64_t(heads) * width);
  chunk.keys = scratch.take<float>(rows * ld);
  chunk.p = scratch.take<float>(int64_t(rows) * heads);
  chunk.chunk_m = scratch.take<float>(heads);
  chunk.chunk_l = scratch.take<float>(heads);
  chunk.kept = scratch.take<float>(heads);
  chunk.added = scratch.take<float>(heads);
  pack_queries_f32(x, queries, heads, chunk.q);
  for (int j = 0; j < n; ++j) {
    for (int k = 0; k < width; k += 8) _mm256_store_ps(chunk.keys + j * ld + k, load8(x.row(at[j]) + k));
  }
  if (n < rows) std::memset(chunk.keys + n * ld, 0, width * sizeof(float));
  chunk.score();
  for (int i = 0; i < heads; i += 8) chunk.weigh(i);
  merge_factors(x, chunk.chunk_m, chunk.chunk_l, chunk.kept, chunk.added);
  chunk.add();
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
