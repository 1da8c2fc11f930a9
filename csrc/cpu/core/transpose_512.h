// A transposition of 4-byte words, as AVX512-VNNI wants its second operand packed.
#pragma once

#include "core/isa.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

// to[w], word r: word w of rows[r], which are overwritten on the way.
KF_INLINE void transpose_words_512(__m512i (&rows)[16], __m512i (&to)[16]) {
  for (int r = 0; r < 16; r += 2) {
    to[r] = _mm512_unpacklo_epi32(rows[r], rows[r + 1]);
    to[r + 1] = _mm512_unpackhi_epi32(rows[r], rows[r + 1]);
  }
  for (int r = 0; r < 16; r += 4) {
    rows[r] = _mm512_unpacklo_epi64(to[r], to[r + 2]);
    rows[r + 1] = _mm512_unpackhi_epi64(to[r], to[r + 2]);
    rows[r + 2] = _mm512_unpacklo_epi64(to[r + 1], to[r + 3]);
    rows[r + 3] = _mm512_unpackhi_epi64(to[r + 1], to[r + 3]);
  }
  // rows[4 g + i], 128-bit lane w: word 4 w + i of rows 4 g .. 4 g + 3.
  for (int i = 0; i < 4; ++i) {
    const __m512i low = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0xDD);
    const __m512i low2 = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0xDD);
    to[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    to[8 + i] = _mm512_shuffle_i32x4(low, low2, 0xDD);
    to[4 + i] = _mm512_shuffle_i32x4(high, high2, 0x88);
    to[12 + i] = _mm512_shuffle_i32x4(high, high2, 0xDD);
  }
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
