// The indexer's scores from integer dots over the whole head dimension: what the engines share.
//
// Scales are powers of two. Where those of a head's (or an entry's) blocks lie within three binades, they fold into its
// int8 elements: 12 * 2^3 = 96. A dot is then one integer below 2^24 under one scale, every partial sum of contract C3
// is an integer below 2^24 under that scale, and so the one conversion gives C3's bits. The heads' scales fold into the
// weights and an entry's scale commutes with every rounding of the head sum, as long as nothing leaves the range of
// normal numbers; conditions on exponents, once per query and once per panel, see to that. Whatever does not meet them
// takes the other way.
#pragma once

#include "indexer/scores.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

constexpr int kFoldBits = 3;
constexpr int kFoldOffset = 12 << kFoldBits;  // makes folded elements unsigned
constexpr int kFoldedDepth = 1024;            // 1024 * 96 * 96 < 2^24
constexpr int kPaddedHeads = 8;               // heads are filled up to a multiple
constexpr int kLowestRead = 127 - 50, kHighestRead = 127 + 63;

// One query's heads. codes: [depth / 4][padded heads] groups of four int8; bias, weight: [padded heads].
struct FoldedQuery {
  int32_t* codes;
  int32_t* bias;
  float* weight;        // the weight times the head's scale
  int lowest, highest;  // exponents of the nonzero weights' magnitudes
  int scale;            // largest exponent of a head's scale
  bool usable;
};

// Of a panel's kSumWidth entries.
struct FoldedScales {
  float* scale;
  int lowest, highest;  // exponents of the scales
  bool usable;
};

constexpr int padded_heads(int heads) { return (heads + kPaddedHeads - 1) / kPaddedHeads * kPaddedHeads; }

KF_INLINE int exponent_of(float x) { return (kf_i(x) >> 23 & 0xFF) - 127; }

// Twice the E2M1 values, times 2^shift; a shift above kFoldBits stands for zero.
KF_INLINE __m128i folded_codes(int shift) {
  alignas(16) static const int8_t kTables[kFoldBits + 2][16] = {
      {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},
      {0, 2, 4, 6, 8, 12, 16, 24, 0, -2, -4, -6, -8, -12, -16, -24},
      {0, 4, 8, 12, 16, 24, 32, 48, 0, -4, -8, -12, -16, -24, -32, -48},
      {0, 8, 16, 24, 32, 48, 64, 96, 0, -8, -16, -24, -32, -48, -64, -96},
      {}};
  return _mm_load_si128(reinterpret_cast<const __m128i*>(kTables[shift]));
}

inline void fold_query(const IndexerTile& tile, int query, FoldedQuery& out) {
  const int blocks = tile.depth / kBlock, ld = padded_heads(tile.heads);
  const __m128i low = _mm_set1_epi8(15), flip = _mm_set1_epi8(-128);
  out.lowest = 127, out.highest = out.scale = -127;
  out.usable = true;
  for (int h = 0; h < ld; ++h) {
    const bool real = h < tile.heads;
    const uint8_t* scales = tile.q_scale_row(query, real ? h : 0);
    const uint8_t* codes = tile.q_row(query, real ? h : 0);
    int largest = 0;
    for (int b = 0; b < blocks; ++b) largest = std::max<int>(largest, scales[b]);
    out.usable &= largest <= kHighestRead;
    const int base = std::max(largest, kLowestRead) - kFoldBits;
    __m128i sums = _mm_setzero_si128();  // of elements + 128
    for (int b = 0; b < blocks; ++b) {
      const int shift = scales[b] - base;
      const bool zero = scales[b] < kLowestRead || !real;
      out.usable &= zero || shift >= 0;
      const __m128i table = folded_codes(zero || shift < 0 ? kFoldBits + 1 : shift);
      const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + b * (kBlock / 2)));
      const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(packed, low));
      const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(packed, 4), low));
      sums = _mm_add_epi64(sums, _mm_sad_epu8(_mm_xor_si128(even, flip), _mm_setzero_si128()));
      sums = _mm_add_epi64(sums, _mm_sad_epu8(_mm_xor_si128(odd, flip), _mm_setzero_si128()));
      int32_t* to = out.codes + int64_t(b) * 8 * ld + h;
      to[0] = _mm_extract_epi32(even, 0), to[ld] = _mm_extract_epi32(even, 1);
      to[2 * ld] = _mm_extract_epi32(even, 2), to[3 * ld] = _mm_extract_epi32(even, 3);
      to[4 * ld] = _mm_extract_epi32(odd, 0), to[5 * ld] = _mm_extract_epi32(odd, 1);
      to[6 * ld] = _mm_extract_epi32(odd, 2), to[7 * ld] = _mm_extract_epi32(odd, 3);
    }
    const int sum = _mm_cvtsi128_si32(sums) + _mm_extract_epi32(sums, 2) - 128 * tile.depth;
    out.bias[h] = -kFoldOffset * sum;
    const float given = real ? tile.weights[query * tile.ld_weights + h] : 0.0f;
    const float weight = std::fabs(given) < kSmallestRead ? 0.0f : given;
    out.usable &= std::fabs(weight) <= 0x1p60f;  // no NaN either
    out.scale = std::max(out.scale, base - 127 - 2);
    out.weight[h] = weight * power_of_two(base - 127 - 2);
    if (weight != 0.0f) {
      out.lowest = std::min(out.lowest, exponent_of(out.weight[h]));
      out.highest = std::max(out.highest, exponent_of(out.weight[h]));
    }
  }
  out.usable &= out.lowest >= -90 && out.highest <= 60;
}

// Every dot, weighted dot, partial sum and score is 0 or a normal number, with the panel's scale and without it.
KF_INLINE bool commutes(const FoldedQuery& query, const FoldedScales& panel) {
  if (!query.usable || !panel.usable || query.scale + panel.highest > 100) return false;
  return query.lowest + panel.lowest >= -100 && query.highest + panel.highest <= 80;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
