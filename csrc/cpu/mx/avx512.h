// AVX-512 reading of the operands, shared by the VNNI, BF16 and AMX engines.
#pragma once

#include "mx/tile.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

// out[j], lane c: bytes 4j .. 4j+3 of block `block` of column c.
KF_INLINE void load_strip_block(const StripRows& rows, int block, __m512i out[4]) {
  __m512i x[4];
  for (int i = 0; i < 4; ++i) {
    const auto piece = [&](int lane) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.codes[4 * lane + i] + block * (kBlock / 2)));
    };
    x[i] = _mm512_castsi128_si512(piece(0));
    x[i] = _mm512_inserti32x4(x[i], piece(1), 1);
    x[i] = _mm512_inserti32x4(x[i], piece(2), 2);
    x[i] = _mm512_inserti32x4(x[i], piece(3), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpacklo_epi32(x[2], x[3]);
  const __m512i c = _mm512_unpackhi_epi32(x[0], x[1]), d = _mm512_unpackhi_epi32(x[2], x[3]);
  out[0] = _mm512_unpacklo_epi64(a, b);
  out[1] = _mm512_unpackhi_epi64(a, b);
  out[2] = _mm512_unpacklo_epi64(c, d);
  out[3] = _mm512_unpackhi_epi64(c, d);
}

// Scale bytes of a strip, four blocks at a time: lane c holds those of column c.
class StripScales {
 public:
  KF_INLINE StripScales(const StripRows& rows, int blocks) : rows_(rows), blocks_(blocks) {}
  KF_INLINE __m512i bytes(int block) {
    if (block % 4 == 0) {
      alignas(64) uint32_t quads[kStrip];
      if (block + 4 <= blocks_) {
        for (int c = 0; c < kStrip; ++c) std::memcpy(&quads[c], rows_.scales[c] + block, 4);
      } else {
        for (int c = 0; c < kStrip; ++c) {
          quads[c] = 0;
          std::memcpy(&quads[c], rows_.scales[c] + block, blocks_ - block);
        }
      }
      quads_ = _mm512_load_si512(quads);
    }
    const __m512i byte = _mm512_and_si512(quads_, _mm512_set1_epi32(0xFF));
    quads_ = _mm512_srli_epi32(quads_, 8);
    largest_ = _mm512_mask_max_epi32(largest_, _mm512_cmpneq_epi32_mask(byte, _mm512_set1_epi32(0xFF)), largest_, byte);
    return byte;
  }
  // fp32 bits of the largest factor seen, NaN apart.
  KF_INLINE int32_t largest_bits() const { return kf_i(read_scale(uint8_t(_mm512_reduce_max_epi32(largest_)))); }

 private:
  const StripRows& rows_;
  int blocks_;
  __m512i quads_ = _mm512_setzero_si512();
  __m512i largest_ = _mm512_setzero_si512();
};

KF_INLINE __m512 read_scales(__m512i bytes) {
  __m512i bits = _mm512_maskz_slli_epi32(_mm512_cmpge_epi32_mask(bytes, _mm512_set1_epi32(127 - 50)), bytes, 23);
  bits = _mm512_mask_mov_epi32(bits, _mm512_cmpgt_epi32_mask(bytes, _mm512_set1_epi32(127 + 63)),
                               _mm512_set1_epi32(kInfBits));
  bits =
      _mm512_mask_mov_epi32(bits, _mm512_cmpeq_epi32_mask(bytes, _mm512_set1_epi32(255)), _mm512_set1_epi32(kNanBits));
  return _mm512_castsi512_ps(bits);
}

KF_INLINE int32_t largest_u16(__m512i words) {
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(words), _mm512_extracti64x4_epi64(words, 1));
  const __m128i quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi32(-1)));
  return 0xFFFF ^ (_mm_cvtsi128_si32(least) & 0xFFFF);
}

KF_INLINE int32_t largest_u8(__m512i bytes) {
  return largest_u16(_mm512_max_epu16(_mm512_and_si512(bytes, _mm512_set1_epi16(0xFF)), _mm512_srli_epi16(bytes, 8)));
}

// One E4M3 or BF16 block as bf16 words, with what its window needs.
struct WindowBlock {
  __m512i words;  // small bf16 values already read as 0; any value where factor is NaN
  float factor;
  int exponent;
};

template <int kFormat>
KF_INLINE WindowBlock load_window(const MxTile& tile, int row, int block) {
  static_assert(kFormat != kE2m1, "packed FP4 needs no window");
  const uint8_t* stored = a_block<kFormat>(tile, row, block);
  WindowBlock out;
  int32_t amax;
  bool finite;
  if (kFormat == kBf16) {
    const __m512i raw = _mm512_loadu_si512(stored);
    const __m512i magnitude = _mm512_and_si512(raw, _mm512_set1_epi16(0x7FFF));
    const __mmask32 keep = _mm512_cmpge_epu16_mask(magnitude, _mm512_set1_epi16((127 - 50) << 7));
    out.words = _mm512_maskz_mov_epi16(keep, raw);
    amax = largest_u16(_mm512_maskz_mov_epi16(keep, magnitude));
    finite = amax < 0x7F80;
  } else {
    alignas(64) static const uint16_t kSubnormals[32] = {0x0000, 0x3B00, 0x3B80, 0x3BC0,
                                                         0x3C00, 0x3C20, 0x3C40, 0x3C60};
    const __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored)));
    const __m512i magnitude = _mm512_and_si512(codes, _mm512_set1_epi16(0x7F));
    __m512i words = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
    words = _mm512_mask_permutexvar_epi16(words, _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8)), magnitude,
                                          _mm512_load_si512(kSubnormals));
    amax = largest_u16(words);
    finite = amax < (0x7F << 4) + (120 << 7);
    out.words = _mm512_or_si512(words, _mm512_slli_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(0x80)), 8));
  }
  if (__builtin_expect(!finite, 0)) {
    out.words = _mm512_setzero_si512();
    out.factor = kf_f(kNanBits);
    out.exponent = 0;
    return out;
  }
  out.exponent = window_exponent(amax << 16);
  out.factor = window_factor<kFormat>(out.exponent, a_scale_row<kFormat>(tile, row), block);
  return out;
}

KF_INLINE __m512 even_floats(__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }
KF_INLINE __m512 odd_floats(__m512i words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xFFFF0000))));
}

// q of 16 elements: the fused multiply-add rounds once, and x * 2^(15-e) is exact.
KF_INLINE __m512i window_integers(__m512 x, int exponent) {
  const __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(power_of_two(15 - exponent)), _mm512_set1_ps(kWindowMagic));
  return _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(kWindowMagicBits));
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
