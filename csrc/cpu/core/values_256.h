// 8 stored elements at a time as the contract reads and writes them (C1, C8), with AVX2; see core/read.h.
#pragma once

#include "core/read.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

KF_INLINE __m256 constant8(int32_t bits) { return _mm256_castsi256_ps(_mm256_set1_epi32(bits)); }

KF_INLINE __m256 read8(__m256 x) {
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF));
  const __m256i kept = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(kSmallestReadBits - 1));
  return _mm256_and_ps(x, _mm256_castsi256_ps(kept));
}

// 8 elements. Codes are widened in both halves of a register, as shuffles do not cross them.
KF_INLINE __m256 load8(const float* from) { return _mm256_loadu_ps(from); }
KF_INLINE __m256 load8(const uint16_t* from) {
  const __m256i words = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const __m256i places = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                          -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(words, places));
}

KF_INLINE __m256i canonical_bits(__m256 x) {
  const __m256 plain = _mm256_and_ps(x, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ));
  return _mm256_castps_si256(_mm256_blendv_ps(plain, constant8(0x7FC00000), _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
KF_INLINE void store8(float* to, __m256 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), canonical_bits(x)); }
// Of what is stored as bfloat16 the codes are the high halves; the low ones are any.
KF_INLINE __m256i bf16_high_halves(__m256 x) {
  const __m256i bits = canonical_bits(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
}
KF_INLINE void store8(uint16_t* to, __m256 x) {
  const __m256i codes = _mm256_srli_epi32(bf16_high_halves(x), 16);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), words);
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
