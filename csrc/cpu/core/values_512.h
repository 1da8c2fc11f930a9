// 16 stored elements at a time as the contract reads and writes them (C1, C8), with AVX-512; see core/read.h.
#pragma once

#include "core/read.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace kf {
namespace {

KF_INLINE __m512 constant(int32_t bits) { return _mm512_castsi512_ps(_mm512_set1_epi32(bits)); }

KF_INLINE __mmask16 is_read(__m512 x) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
  return _mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(kSmallestReadBits));
}
KF_INLINE __m512 read16(__m512 x) { return _mm512_maskz_mov_ps(is_read(x), x); }

// 16 elements.
KF_INLINE __m512 load16(const float* from) { return _mm512_loadu_ps(from); }
KF_INLINE __m512 load16(const uint16_t* from) {
  const __m512i words = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  alignas(64) static constexpr uint16_t kPlaces[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                       0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, _mm512_load_si512(kPlaces), words));
}

KF_INLINE __m512i canonical_bits(__m512 x) {
  const __m512i bits =
      _mm512_castps_si512(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ), x));
  return _mm512_mask_mov_epi32(bits, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC00000));
}
KF_INLINE void store16(float* to, __m512 x) { _mm512_storeu_si512(to, canonical_bits(x)); }
KF_INLINE __m512i bf16_codes(__m512i bits) {
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
}
KF_INLINE void store16(uint16_t* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(bf16_codes(canonical_bits(x))));
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
