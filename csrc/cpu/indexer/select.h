// Selection of the largest scores from a stream: kept entries in ascending index order, and a threshold.
#pragma once

#include <algorithm>

#include "core/isa.h"
#include "core/read.h"
#include "core/scalar.h"
#include "core/values_512.h"

namespace kf {
namespace {

// One query's kept entries; `capacity` fit.
struct Kept {
  int32_t* keys;
  int32_t* index;
  int32_t* count;
  int32_t* threshold;
};

constexpr int kDigits = 256;

// What orders a score after rounding to bfloat16: larger is better; the one NaN is the largest.
KF_INLINE int32_t score_key(float score) {
  const uint32_t code = bf16_code(uint32_t(kf_i(score)));
  return int32_t(code & 0x8000 ? 0xFFFF - code : code + 0x8000);
}

// Keeps the `topk` largest, of equal keys the first; with as many, the smallest key becomes the threshold.
inline void reduce_kept(const Kept& kept, int topk) {
  const int count = *kept.count;
  if (count < topk) return;
  int32_t digits[kDigits] = {};
  for (int i = 0; i < count; ++i) ++digits[kept.keys[i] >> 8];
  int high = kDigits - 1, above = 0;  // keys with a larger high byte
  while (above + digits[high] < topk) above += digits[high--];
  std::fill_n(digits, kDigits, 0);
  for (int i = 0; i < count; ++i) digits[kept.keys[i] & 255] += kept.keys[i] >> 8 == high;
  int low = kDigits - 1;
  while (above + digits[low] < topk) above += digits[low--];
  const int32_t floor = high << 8 | low;
  int room = topk - above, position = 0;
  for (int i = 0; i < count; ++i) {
    const int32_t key = kept.keys[i];
    const bool equal = key == floor, stays = key > floor || (equal && room > 0);
    kept.keys[position] = key;
    kept.index[position] = kept.index[i];
    position += stays;
    room -= equal;
  }
  *kept.count = position;
  *kept.threshold = floor;
}

// Where the entry of each rank is kept, larger keys first, of equal ones the first; -1 up to `size`.
inline void rank_kept(const int32_t* keys, int count, int size, int32_t* order) {
  int32_t starts[2][kDigits] = {};
  for (int i = 0; i < count; ++i) {
    ++starts[0][255 - (keys[i] & 255)];
    ++starts[1][255 - (keys[i] >> 8)];
  }
  for (auto& digit : starts) {
    int32_t position = 0;
    for (int32_t& start : digit) {
      const int32_t found = start;
      start = position;
      position += found;
    }
  }
  static thread_local int32_t half[1 << 16];
  for (int i = 0; i < count; ++i) half[starts[0][255 - (keys[i] & 255)]++] = i;
  for (int i = 0; i < count; ++i) order[starts[1][255 - (keys[half[i]] >> 8)]++] = half[i];
  std::fill(order + count, order + size, -1);
}

// Appends the scores whose key exceeds the threshold; returns how many are kept then.
inline int append_portable(const Kept& kept, const float* scores, int seen, int32_t first) {
  int count = *kept.count;
  const int32_t threshold = *kept.threshold;
  for (int t = 0; t < seen; ++t) {
    const int32_t key = score_key(scores[t]);
    if (key > threshold) {
      kept.keys[count] = key;
      kept.index[count++] = first + t;
    }
  }
  return count;
}

}  // namespace
}  // namespace kf

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace kf {
namespace {

inline int append_avx512(const Kept& kept, const float* scores, int seen, int32_t first) {
  int count = *kept.count;
  const __m512i threshold = _mm512_set1_epi32(*kept.threshold), sign = _mm512_set1_epi32(0x8000);
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int t = 0; t < seen; t += 16) {
    const __mmask16 inside = seen - t >= 16 ? __mmask16(-1) : __mmask16((1u << (seen - t)) - 1);
    const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(inside, scores + t));
    const __m512i code = bf16_codes(bits);
    const __mmask16 negative = _mm512_test_epi32_mask(code, sign);
    const __m512i flip = _mm512_mask_mov_epi32(sign, negative, _mm512_set1_epi32(0xFFFF));
    const __m512i key = _mm512_xor_si512(code, flip);
    const __mmask16 found = _mm512_mask_cmpgt_epi32_mask(inside, key, threshold);
    if (found == 0) continue;
    const int more = __builtin_popcount(found);
    const __mmask16 written = __mmask16((1u << more) - 1);
    const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(first + t));
    _mm512_mask_storeu_epi32(kept.keys + count, written, _mm512_maskz_compress_epi32(found, key));
    _mm512_mask_storeu_epi32(kept.index + count, written, _mm512_maskz_compress_epi32(found, index));
    count += more;
  }
  return count;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif

namespace kf {
namespace {

inline int append_scores(Isa isa, const Kept& kept, const float* scores, int seen, int32_t first) {
#if defined(KF_X86)
  if (isa >= Isa::kAvx512Bf16) return append_avx512(kept, scores, seen, first);
#endif
  (void)isa;
  return append_portable(kept, scores, seen, first);
}

}  // namespace
}  // namespace kf
