// One chunk of attention by bfloat16 dots: native mode, close to the definition instead of equal to it.
//
// Queries and entries are multiplied as they are, probabilities are rounded to bfloat16.
#pragma once

#include "attention/vnni.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prefer-vector-width=512")
namespace kf {
namespace {

constexpr int kBf16Rows = 8;

KF_INLINE void dot_pairs(__m512& acc, __m512i a, __m512i b) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
}

KF_INLINE __m256i bf16_words(__m512 x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }

struct Bf16RowSums {
  __m512 first, second;
  KF_INLINE Bf16RowSums() : first(_mm512_setzero_ps()), second(_mm512_setzero_ps()) {}
  KF_INLINE void add(const uint16_t* a, __m512i b0, __m512i b1) {
    const __m512i pair = four_bytes(reinterpret_cast<const int8_t*>(a));
    dot_pairs(first, pair, b0);
    dot_pairs(second, pair, b1);
  }
  KF_INLINE void finish(__m512 out[2]) const {
    out[0] = first;
    out[1] = second;
  }
};

// Eight rows of pairs of bfloat16, `step` words apart, times two strips of 16 columns, `groups` pairs deep.
KF_INLINE void bf16_tile(const uint16_t* const rows[kBf16Rows], int64_t step, const int8_t* b, int64_t strip,
                         int groups, __m512 out[kBf16Rows][2]) {
  Bf16RowSums r0, r1, r2, r3, r4, r5, r6, r7;
  const uint16_t *a0 = rows[0], *a1 = rows[1], *a2 = rows[2], *a3 = rows[3];
  const uint16_t *a4 = rows[4], *a5 = rows[5], *a6 = rows[6], *a7 = rows[7];
  int64_t at = 0;
  for (const int8_t* const end = b + int64_t(groups) * 64; b != end; b += 64, at += step) {
    const __m512i b0 = _mm512_load_si512(b), b1 = _mm512_load_si512(b + strip);
    r0.add(a0 + at, b0, b1);
    r1.add(a1 + at, b0, b1);
    r2.add(a2 + at, b0, b1);
    r3.add(a3 + at, b0, b1);
    r4.add(a4 + at, b0, b1);
    r5.add(a5 + at, b0, b1);
    r6.add(a6 + at, b0, b1);
    r7.add(a7 + at, b0, b1);
  }
  r0.finish(out[0]);
  r1.finish(out[1]);
  r2.finish(out[2]);
  r3.finish(out[3]);
  r4.finish(out[4]);
  r5.finish(out[5]);
  r6.finish(out[6]);
  r7.finish(out[7]);
}

// Two rows of `width` words to one group of every strip: out[d / 16 * strip + (d % 16) * 4 + 2 * row].
inline void pack_value_pairs(const uint16_t* first, const uint16_t* second, int width, int8_t* out, int64_t strip) {
  const __m512i low = _mm512_setr_epi32(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
  for (int d = 0; d < width; d += 32) {
    // Quarters 0, 2, 1, 3 of each row, so that unpacking within lanes gives columns in order.
    const __m512i a = _mm512_permutexvar_epi32(low, _mm512_loadu_si512(first + d));
    const __m512i b = _mm512_permutexvar_epi32(low, _mm512_loadu_si512(second + d));
    _mm512_store_si512(out + d / 16 * strip, _mm512_unpacklo_epi16(a, b));
    _mm512_store_si512(out + (d / 16 + 1) * strip, _mm512_unpackhi_epi16(a, b));
  }
}

// Strips of 16 heads' queries as pairs: [heads / 16][width / 2][16 heads][2]; `group` holds 16 rows.
inline void pack_queries(const AttentionChunk& x, const uint16_t* q, int heads, uint16_t* group, int8_t* out) {
  for (int first = 0; first < heads; first += 16) {
    const int present = std::min(16, std::max(0, x.heads - first));
    if (present > 0) std::memcpy(group, q + int64_t(first) * x.width, int64_t(present) * x.width * 2);
    std::memset(group + int64_t(present) * x.width, 0, int64_t(16 - present) * x.width * 2);
    pack_keys(reinterpret_cast<const int8_t*>(group), 2 * x.width, out + int64_t(first) * 2 * x.width);
  }
}

// Entries are rows of the scores, heads their columns: so keys are read where they lie, and a vector holds 16 heads.
inline int attention_chunk_bf16(const AttentionChunk& x, const uint16_t* queries) {
  int at[kChunk];
  const int n = x.visible(at), width = x.width;
  if (n == 0) return kOk;
  const int columns = (n + 31) / 32 * 32, heads = (x.heads + 31) / 32 * 32;
  const int64_t query_strip = int64_t(width) * 32, value_strip = int64_t(columns) * 32;
  Scratch& scratch = thread_scratch();
  const size_t bytes = size_t(2) * width * (heads + columns + 17) + size_t(6) * heads * columns + 16 * heads;
  if (!scratch.reserve(bytes + 16 * 64)) return kOutOfMemory;
  int8_t* q = scratch.take<int8_t>(2 * heads * width);
  int8_t* values = scratch.take<int8_t>(2 * columns * width);
  uint16_t* group = scratch.take<uint16_t>(16 * width);
  uint16_t* zeros = scratch.take<uint16_t>(width);
  float* scores = scratch.take<float>(heads * columns);   // [columns][heads]
  uint16_t* p = scratch.take<uint16_t>(heads * columns);  // [columns / 2][heads][2]
  float* chunk_m = scratch.take<float>(heads);
  float* chunk_l = scratch.take<float>(heads);
  float* kept = scratch.take<float>(heads);
  float* added = scratch.take<float>(heads);
  std::memset(zeros, 0, 2 * width);
  const uint16_t* entry[kChunk];
  for (int j = 0; j < columns; ++j) entry[j] = j < n ? x.row(at[j]) : zeros;
  pack_queries(x, queries, heads, group, q);
  for (int j = 0; j < columns; j += 2) pack_value_pairs(entry[j], entry[j + 1], width, values + j * 32, value_strip);
  for (int j = 0; j < columns; j += kBf16Rows) {
    for (int i = 0; i < heads; i += 32) {
      __m512 total[kBf16Rows][2];
      bf16_tile(entry + j, 2, q + i / 16 * query_strip, query_strip, width / 2, total);
      for (int r = 0; r < kBf16Rows; ++r) {
        _mm512_store_ps(scores + (j + r) * heads + i, total[r][0]);
        _mm512_store_ps(scores + (j + r) * heads + i + 16, total[r][1]);
      }
    }
  }
  for (int i = 0; i < heads; i += 16) {
    const __m512 factor = _mm512_set1_ps(x.factor);
    __m512 top = _mm512_set1_ps(-kLargestScore);
    __mmask16 unusable = 0;
    for (int j = 0; j < n; ++j) {
      const __m512 t = _mm512_mul_ps(_mm512_load_ps(scores + j * heads + i), factor);
      unusable |= _mm512_cmp_ps_mask(_mm512_sub_ps(t, t), _mm512_setzero_ps(), _CMP_NEQ_UQ);
      top = _mm512_max_ps(top, t);
      _mm512_store_ps(scores + j * heads + i, t);
    }
    top = _mm512_mask_mov_ps(top, unusable, _mm512_setzero_ps());
    __m512 total = _mm512_setzero_ps();
    for (int j = 0; j < columns; j += 2) {
      __m512i words[2];
      for (int k = 0; k < 2; ++k) {
        const __m512 d = _mm512_sub_ps(_mm512_load_ps(scores + (j + k) * heads + i), top);
        const __m512 weight = j + k < n ? exp2_of_nonpositive16(d) : _mm512_setzero_ps();
        total = _mm512_add_ps(total, weight);
        words[k] = _mm512_cvtepu16_epi32(bf16_words(weight));
      }
      _mm512_store_si512(p + int64_t(j) * heads + 2 * i, _mm512_or_si512(words[0], _mm512_slli_epi32(words[1], 16)));
    }
    const __m512 sum = _mm512_mul_ps(total, _mm512_set1_ps(kWeightOne));
    _mm512_store_ps(chunk_m + i, top);
    _mm512_store_ps(chunk_l + i, _mm512_mask_mov_ps(sum, unusable, _mm512_set1_ps(kf_f(kNanBits))));
  }
  merge_factors(x, chunk_m, chunk_l, kept, added);
  for (int d = 0; d < width; d += 32) {
    for (int i = 0; i < x.heads; i += kBf16Rows) {
      __m512 total[kBf16Rows][2];
      const uint16_t* rows[kBf16Rows];
      for (int r = 0; r < kBf16Rows; ++r) rows[r] = p + 2 * (i + r);
      bf16_tile(rows, 2 * heads, values + d / 16 * value_strip, value_strip, columns / 2, total);
      for (int r = 0; r < kBf16Rows; ++r) {
        const __m512 a = _mm512_set1_ps(kept[i + r]), b = _mm512_set1_ps(added[i + r] * kWeightOne);
        for (int s = 0; s < 2; ++s) {
          float* o = x.o + (i + r) * x.ld_o + d + 16 * s;
          const __m512 old = x.fresh ? _mm512_setzero_ps() : _mm512_mul_ps(_mm512_loadu_ps(o), a);
          _mm512_storeu_ps(o, _mm512_fmadd_ps(total[r][s], b, old));
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
