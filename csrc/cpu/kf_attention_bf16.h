// One chunk of attention by bfloat16 dots: native mode, close to the definition instead of equal to it.
//
// Queries arrive in slices; a window of bfloat16 data has eight significant bits at most, so high * 256 + low is a
// bfloat16 number again. Entries are multiplied as they are, probabilities are rounded to bfloat16.
#pragma once

#include "kf_attention_vnni.h"

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
  __m512 first = _mm512_setzero_ps(), second = _mm512_setzero_ps();
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

// Eight rows [.][ld] of bfloat16 times two strips of 16 columns, `groups` pairs deep.
KF_INLINE void bf16_tile(const uint16_t* a, int64_t ld, const int8_t* b, int64_t strip, int groups,
                         __m512 out[kBf16Rows][2]) {
  Bf16RowSums r0, r1, r2, r3, r4, r5, r6, r7;
  for (int64_t g = 0; g < groups; ++g) {
    const __m512i b0 = _mm512_load_si512(b + g * 64), b1 = _mm512_load_si512(b + strip + g * 64);
    const uint16_t* at = a + 2 * g;
    r0.add(at, b0, b1);
    r1.add(at + ld, b0, b1);
    r2.add(at + 2 * ld, b0, b1);
    r3.add(at + 3 * ld, b0, b1);
    r4.add(at + 4 * ld, b0, b1);
    r5.add(at + 5 * ld, b0, b1);
    r6.add(at + 6 * ld, b0, b1);
    r7.add(at + 7 * ld, b0, b1);
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

inline int attention_chunk_bf16(const AttentionChunk& x) {
  int at[kChunk];
  const int n = x.visible(at), heads = x.heads, width = x.width;
  if (n == 0) return kOk;
  const int columns = (n + 31) / 32 * 32;
  const int64_t key_strip = int64_t(width) * 32, value_strip = int64_t(columns) * 32;
  Scratch& scratch = thread_scratch();
  const size_t entry_bytes = 2 * size_t(columns) * width;
  if (!scratch.reserve(2 * entry_bytes + 32 * width + heads * (2 * width + 6 * columns + 32) + 16 * 64)) {
    return kOutOfMemory;
  }
  uint16_t* q = scratch.take<uint16_t>(heads * width);
  uint16_t* group = scratch.take<uint16_t>(16 * width);
  int8_t* keys = scratch.take<int8_t>(entry_bytes);
  int8_t* values = scratch.take<int8_t>(entry_bytes);
  float* scores = scratch.take<float>(heads * columns);
  uint16_t* p = scratch.take<uint16_t>(heads * columns);
  float* chunk_m = scratch.take<float>(heads);
  float* chunk_l = scratch.take<float>(heads);
  float* kept = scratch.take<float>(heads);
  float* added = scratch.take<float>(heads);
  for (int64_t k = 0; k < int64_t(heads) * width; k += 16) {
    const __m512i high = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x.q_high + k)));
    const __m512i low = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x.q_low + k)));
    const __m512 window = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + k), bf16_words(window));
  }
  for (int first = 0; first < columns; first += 16) {
    for (int r = 0; r < 16; ++r) {
      if (first + r < n) {
        std::memcpy(group + r * width, x.row(at[first + r]), 2 * width);
      } else {
        std::memset(group + r * width, 0, 2 * width);
      }
    }
    pack_keys(reinterpret_cast<const int8_t*>(group), 2 * width, keys + first / 16 * key_strip);
    for (int r = 0; r < 16; r += 2) {
      pack_value_pairs(group + r * width, group + (r + 1) * width, width, values + (first + r) * 32, value_strip);
    }
  }
  for (int c = 0; c < columns; c += 32) {
    for (int i = 0; i < heads; i += kBf16Rows) {
      __m512 total[kBf16Rows][2];
      bf16_tile(q + i * width, width, keys + c / 16 * key_strip, key_strip, width / 2, total);
      for (int r = 0; r < kBf16Rows; ++r) {
        const int e = x.q_exponent[i + r];
        const __m512 unit = _mm512_set1_ps(e == kUnusable ? kf_f(kNanBits) : power_of_two(e - 15));
        for (int s = 0; s < 2; ++s) {
          const __m512 dot = _mm512_mul_ps(total[r][s], unit);
          _mm512_store_ps(scores + (i + r) * columns + c + 16 * s, _mm512_mul_ps(dot, _mm512_set1_ps(x.factor)));
        }
      }
    }
  }
  for (int i = 0; i < heads; ++i) {
    const float* t = scores + i * columns;
    __m512 top = _mm512_set1_ps(-kLargestScore);
    __mmask16 unusable = 0;
    for (int j = 0; j < n; j += 16) {
      const __mmask16 inside = n - j >= 16 ? 0xFFFF : (1 << (n - j)) - 1;
      const __m512 here = _mm512_load_ps(t + j);
      unusable |= _mm512_mask_cmp_ps_mask(inside, _mm512_sub_ps(here, here), _mm512_setzero_ps(), _CMP_NEQ_UQ);
      top = _mm512_mask_max_ps(top, inside, top, here);
    }
    chunk_m[i] = unusable ? 0.0f : _mm512_reduce_max_ps(top);
    __m512 total = _mm512_setzero_ps();
    for (int j = 0; j < columns; j += 16) {
      const __mmask16 inside = n - j >= 16 ? 0xFFFF : n <= j ? 0 : (1 << (n - j)) - 1;
      const __m512 d = _mm512_maskz_sub_ps(inside, _mm512_load_ps(t + j), _mm512_set1_ps(chunk_m[i]));
      const __m512 weight = _mm512_maskz_mov_ps(inside, exp2_of_nonpositive16(d));
      total = _mm512_add_ps(total, weight);
      _mm256_store_si256(reinterpret_cast<__m256i*>(p + i * columns + j), bf16_words(weight));
    }
    chunk_l[i] = unusable ? kf_f(kNanBits) : _mm512_reduce_add_ps(total) * kWeightOne;
  }
  merge_factors(x, chunk_m, chunk_l, kept, added);
  for (int d = 0; d < width; d += 32) {
    for (int i = 0; i < heads; i += kBf16Rows) {
      __m512 total[kBf16Rows][2];
      bf16_tile(p + i * columns, columns, values + d / 16 * value_strip, value_strip, columns / 2, total);
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
