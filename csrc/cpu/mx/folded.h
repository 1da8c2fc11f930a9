// Operands with their power-of-two scales folded in, as bf16, for the AMX and AVX512-BF16 engines.
//
// q * fa and w * fw have at most 8 significant bits, so both are bf16 numbers; the products of a block are then exact
// multiples of fa * fw, whose sum is the block's term itself: no separate scaling. E4M3 with fp32 scales keeps its
// 24-bit factor apart and multiplies the block's sum by it. Zero and NaN factors fold too; infinite or overflowing
// ones do not, and such tiles go to the portable engine.
#pragma once

#include "mx/avx512.h"
#include "mx/slices.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

// Within eight elements of k both operands hold pairs (0,4) (1,5) (2,6) (3,7): one 16-bit shift of the packed codes
// then brings a pair's two nibbles to the low ends of its two words.

// bf16 of twice an E2M1 value times 2^63; vpermw looks at five bits of its index, hence twice the sixteen. Zero is
// the least int16, -0.0, which the saturating addition of a non-positive exponent leaves alone.
constexpr int kFoldBias = 63;
alignas(64) constexpr uint16_t kBiasedE2m1[32] = {0x8000, 0x5F00, 0x5F80, 0x5FC0, 0x6000, 0x6040, 0x6080, 0x60C0,
                                                  0x8000, 0xDF00, 0xDF80, 0xDFC0, 0xE000, 0xE040, 0xE080, 0xE0C0,
                                                  0x8000, 0x5F00, 0x5F80, 0x5FC0, 0x6000, 0x6040, 0x6080, 0x60C0,
                                                  0x8000, 0xDF00, 0xDF80, 0xDFC0, 0xE000, 0xE040, 0xE080, 0xE0C0};

// Nibbles in the low bits of 16-bit words (bits above are ignored) to bf16 2v * 2^shift; exponents: shift - 63, << 7.
KF_INLINE __m512i fold_nibbles(__m512i nibbles, __m512i exponents) {
  return _mm512_adds_epi16(_mm512_permutexvar_epi16(nibbles, _mm512_load_si512(kBiasedE2m1)), exponents);
}

alignas(64) constexpr uint16_t kOrder[kBlock] = {0,  4,  1,  5,  2,  6,  3,  7,  8,  12, 9,  13, 10, 14, 11, 15,
                                                 16, 20, 17, 21, 18, 22, 19, 23, 24, 28, 25, 29, 26, 30, 27, 31};

// bf16 of the E4M3 magnitudes below 2^-3, in windows of exponent 6 and less, 7, 8 and 9: multiples of 2^-9, 2^-8, 2^-7
// and 2^-6. Every larger magnitude is a multiple of 2^-6.
struct SmallMagnitudes {
  alignas(64) uint16_t words[4][32];

  constexpr SmallMagnitudes() : words() {
    for (int window = 0; window < 4; ++window) {
      for (int code = 0; code < 32; ++code) {
        const int value = code < 8 ? code : (8 + code % 8) << (code / 8 - 1);  // times 2^-9
        const int step = 1 << window, below = value / step, rest = 2 * (value % step);
        const int rounded = (below + (rest > step || (rest == step && below % 2 == 1) ? 1 : 0)) * step;
        int top = 0;
        while (rounded >> (top + 1) != 0) ++top;
        words[window][code] = rounded == 0 ? 0 : uint16_t((127 - 9 + top) * 128 + ((rounded << (7 - top)) & 127));
      }
    }
  }
};
constexpr SmallMagnitudes kSmallE4m3;

// fold_block for E4M3 with E8M0 scales: a window is a look-up, a factor an addition to exponents.
KF_INLINE float fold_e4m3(const MxTile& tile, int row, int block, void* out) {
  const uint8_t* stored = a_block<kE4m3E8m0>(tile, row, block);
  const uint8_t scale = static_cast<const uint8_t*>(a_scale_row<kE4m3E8m0>(tile, row))[block];
  const __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored)));
  const __m512i magnitudes = _mm512_and_si512(codes, _mm512_set1_epi16(0x7F));
  const int32_t amax = largest_u16(magnitudes);
  if (__builtin_expect(amax == 0x7F || scale == 0xFF, 0)) {
    _mm512_store_si512(out, _mm512_set1_epi16(kNanBits >> 16));
    return kf_f(kNanBits);
  }
  const int exponent = amax == 0 ? 0 : amax >= 8 ? (amax >> 3) - 6 : 23 - __builtin_clz(amax);
  const __m512i small = _mm512_load_si512(kSmallE4m3.words[std::max((amax >> 3) - 12, 0)]);
  __m512i words = _mm512_add_epi16(_mm512_slli_epi16(magnitudes, 4), _mm512_set1_epi16(120 << 7));
  words = _mm512_mask_permutexvar_epi16(words, _mm512_cmplt_epi16_mask(magnitudes, _mm512_set1_epi16(32)), magnitudes,
                                        small);
  const __mmask32 kept = scale < 127 - 50 ? __mmask32(0) : _mm512_test_epi16_mask(words, words);
  const __m512i signs = _mm512_slli_epi16(_mm512_srli_epi16(codes, 7), 15);
  const __m512i half_scale = _mm512_set1_epi16(int16_t((int(scale) - 128) * 128));
  words = _mm512_maskz_add_epi16(kept, words, _mm512_add_epi16(half_scale, signs));
  _mm512_store_si512(out, _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), words));
  return power_of_two(exponent - 16) * read_scale(scale);
}

// One row's block: 32 bf16 of q * fa (q alone for fp32 scales) in the order above; returns fa.
template <int kFormat>
KF_INLINE float fold_block(const MxTile& tile, int row, int block, void* out) {
  if constexpr (kFormat == kE2m1) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a_block<kFormat>(tile, row, block)));
    const __m512i groups = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                                    _mm512_castsi128_si512(packed));
    const __m512i nibbles =
        _mm512_srlv_epi16(groups, _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x00040004, 0x00080008, 0x000C000C)));
    const uint8_t scale = static_cast<const uint8_t*>(a_scale_row<kFormat>(tile, row))[block];
    const float factor = 0.25f * read_scale(scale);
    __m512i words = fold_nibbles(nibbles, _mm512_set1_epi16(int16_t((int(scale) - 129 - kFoldBias) * 128)));
    if (__builtin_expect(scale < 127 - 50, 0)) words = _mm512_setzero_si512();
    if (__builtin_expect(scale == 0xFF, 0)) words = _mm512_set1_epi16(kNanBits >> 16);
    _mm512_store_si512(out, words);
    return factor;
  } else if constexpr (kFormat == kE4m3E8m0) {
    return fold_e4m3(tile, row, block, out);
  } else {
    const WindowBlock window = load_window<kFormat>(tile, row, block);
    const float fold = kFormat == kE4m3F32 ? 1.0f : window.factor;
    const __m512 scale = _mm512_set1_ps(fold * power_of_two(15 - window.exponent));
    const __m512 magic = _mm512_set1_ps(fold * kWindowMagic);  // rounds to a multiple of `fold`
    const __m512 even = _mm512_sub_ps(_mm512_fmadd_ps(even_floats(window.words), scale, magic), magic);
    const __m512 odd = _mm512_sub_ps(_mm512_fmadd_ps(odd_floats(window.words), scale, magic), magic);
    const __m512i words =
        _mm512_mask_mov_epi16(_mm512_srli_epi32(_mm512_castps_si512(even), 16), 0xAAAAAAAA, _mm512_castps_si512(odd));
    _mm512_store_si512(out, _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), words));
    return window.factor;
  }
}

// A in the order the kernels read it: by part of `width` blocks, group of `kGroup` rows, block, row of the group.
template <int kGroup>
struct FoldedRows {
  uint16_t* base;
  int padded;  // rows, a multiple of kGroup
  int blocks;
  int width;
  // `start`: first block of a part.
  KF_INLINE uint16_t* at(int row, int start) const {
    const int64_t before = int64_t(start) * padded + int64_t(row / kGroup * kGroup) * part(start);
    return base + (before + row % kGroup) * kBlock;
  }
  KF_INLINE int part(int start) const { return blocks - start < width ? blocks - start : width; }
};

// Folds `m` rows and fills up with zero rows. factor: [blocks][padded], written for fp32 scales alone. Returns the
// largest factor's bits.
template <int kFormat, int kGroup>
int32_t fold_rows(const MxTile& tile, int row, int m, int first, const FoldedRows<kGroup>& out, float* factor) {
  LargestFactor largest;
  for (int r = 0; r < out.padded; ++r) {
    for (int start = 0; start < out.blocks; start += out.width) {
      uint16_t* to = out.at(r, start);
      const int end = start + out.part(start);
      for (int b = start; b < end; ++b, to += kGroup * kBlock) {
        float fa = 0.0f;
        if (r < m) {
          fa = fold_block<kFormat>(tile, row + r, first + b, to);
          largest.add(fa);
        } else {
          _mm512_store_si512(to, _mm512_setzero_si512());
        }
        if (kFormat == kE4m3F32) factor[int64_t(b) * out.padded + r] = fa;
      }
    }
  }
  return largest.bits;
}

// fold_nibbles' exponents of a strip's scale bytes, one for both words of a column.
KF_INLINE __m512i fold_exponents(__m512i scale_bytes) {
  const __m512i shifts = _mm512_slli_epi32(_mm512_sub_epi32(scale_bytes, _mm512_set1_epi32(127 + kFoldBias)), 7);
  return _mm512_mask_mov_epi16(shifts, 0xAAAAAAAA, _mm512_slli_epi32(shifts, 16));
}

// A quarter of a strip's block, four pairs of k.
KF_INLINE void fold_quarter(__m512i packed, __m512i exponents, uint16_t* pairs) {
  _mm512_store_si512(pairs, fold_nibbles(packed, exponents));
  _mm512_store_si512(pairs + kBlock, fold_nibbles(_mm512_srli_epi16(packed, 4), exponents));
  _mm512_store_si512(pairs + 2 * kBlock, fold_nibbles(_mm512_srli_epi16(packed, 8), exponents));
  _mm512_store_si512(pairs + 3 * kBlock, fold_nibbles(_mm512_srli_epi16(packed, 12), exponents));
}

// Columns of a strip's block whose scale is read as zero or NaN, which no exponent stands for.
class SpecialScales {
 public:
  SpecialScales() = default;
  KF_INLINE explicit SpecialScales(__m512i scale_bytes)
      : nan_(_mm512_cmpeq_epi32_mask(scale_bytes, _mm512_set1_epi32(0xFF))),
        all_(nan_ | _mm512_cmplt_epi32_mask(scale_bytes, _mm512_set1_epi32(127 - 50))) {}
  KF_INLINE bool any() const { return all_ != 0; }
  // Over a folded block.
  KF_INLINE void write(uint16_t* out) const {
    const __m512i words = _mm512_maskz_set1_epi32(nan_, kNanBits | kNanBits >> 16);
    for (int p = 0; p < kBlock / 2; ++p) _mm512_mask_store_epi32(out + p * kBlock, all_, words);
  }

 private:
  __mmask16 nan_, all_;
};

// One block of a strip of W as [16 pairs of k][16 columns][2] bf16 of w * fw.
KF_INLINE void fold_strip_block(const StripRows& rows, int block, __m512i scale_bytes, uint16_t* out) {
  const __m512i exponents = fold_exponents(scale_bytes);
  __m512i packed[4];
  load_strip_block(rows, block, packed);
  for (int j = 0; j < 4; ++j) fold_quarter(packed[j], exponents, out + 4 * j * kBlock);
  const SpecialScales special(scale_bytes);
  if (__builtin_expect(special.any(), 0)) special.write(out);
}

// Returns the largest factor's bits.
inline int32_t fold_strip(const MxTile& tile, int col, int n, int first, int blocks, uint16_t* out) {
  const StripRows rows(tile, col, n, first);
  StripScales scales(rows, blocks);
  for (int b = 0; b < blocks; ++b) fold_strip_block(rows, b, scales.bytes(b), out + int64_t(b) * kBlock * kStrip);
  return scales.largest_bits();
}

// Whether a tile with these largest factors may be computed on folded operands.
template <int kFormat>
KF_INLINE bool folding_is_exact(int32_t largest_a, int32_t largest_w) {
  if (kFormat == kE4m3F32) return largest_w < kInfBits;
  return fused_is_exact(largest_a, largest_w);
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
