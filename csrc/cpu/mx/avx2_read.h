// AVX2 reading of an MX product's operands: rows of A and strips of W as integers and factors.
//
// Where q has two slices, A and W are 16-bit words: vpmaddwd multiplies all of q in one step, where bytes would take
// one for each slice. E2M1 has q in a byte, and vpmaddubsw takes twice as many products; W is then made unsigned by 12,
// which a bias undoes.
//
// A step of a kernel takes 4 bytes of every column. Eight elements of k, as they are packed in 4 bytes of W, are steps
// (0,4) (2,6) (1,5) (3,7) of words, or (0,2,4,6) (1,3,5,7) of bytes: so nibbles come apart without moving.
#pragma once

#include "core/words_256.h"
#include "mx/slices.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {
namespace avx2 {

constexpr int kOffset = 12;
constexpr int kOctets = kBlock / 8;

template <int kFormat>
constexpr int kGroupSteps = two_slices<kFormat> ? 4 : 2;
template <int kFormat>
constexpr int kSteps = kOctets * kGroupSteps<kFormat>;  // in a block

// Rows of A over one chunk of blocks.
template <int kFormat>
struct Rows {
  uint8_t* codes;  // [rows][room][kSteps][4]
  int32_t* bias;   // [rows][room], E2M1 alone: a word, zero above it
  float* factor;   // [rows][room]
  int64_t room;    // for blocks of a row
  int64_t blocks;

  KF_INLINE uint8_t* at(int64_t row, int64_t block) const { return codes + (row * room + block) * kSteps<kFormat> * 4; }
  KF_INLINE Rows from(int64_t row) const { return {at(row, 0), bias + row * room, factor + row * room, room, blocks}; }
};

KF_INLINE __m128i load_16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
KF_INLINE __m256i load_32(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
KF_INLINE __m256i twice(__m128i x) { return _mm256_broadcastsi128_si256(x); }

// How q of an E4M3 code comes about in a window: its significand times a power of two, which the exponent looks up.
// Codes below 32, the only ones that may round, look up their significand.
struct WindowTable {
  uint8_t small[2][16];
  uint8_t power_low[16], power_high[16];
};

// Tables by the largest magnitude: subnormal with its top bit 0, 1 or 2, then of exponent 1 to 15.
struct WindowTables {
  WindowTable of[18];

  constexpr WindowTables() : of() {
    for (int i = 0; i < 18; ++i) {
      const int shift = 14 - i;  // q is the multiple of 2^-9 times 2^shift
      for (int code = 0; code < 32; ++code) {
        const int significand = code < 8 ? code : 8 + code % 8;
        int q = significand;
        if (shift < 0) {
          const int value = code < 8 ? code : significand << (code / 8 - 1);
          const int step = 1 << -shift, below = value / step, rest = 2 * (value % step);
          q = below + (rest > step || (rest == step && below % 2 == 1) ? 1 : 0);
        }
        of[i].small[code / 16][code % 16] = uint8_t(q);
      }
      for (int exponent = 0; exponent < 16; ++exponent) {
        const int power = shift + (exponent < 1 ? 0 : exponent - 1);
        const int word = shift < 0 && exponent < 4 ? 1 : power <= 14 ? 1 << power : 0;
        of[i].power_low[exponent] = uint8_t(word & 255);
        of[i].power_high[exponent] = uint8_t(word >> 8);
      }
    }
  }
};
constexpr WindowTables kWindowTables;

// q of an E4M3 block in the order of steps; returns the factor.
template <int kFormat>
KF_INLINE float cut_e4m3(const MxTile& tile, int row, int block, uint8_t* out) {
  const __m256i order = twice(_mm_setr_epi8(0, 4, 2, 6, 1, 5, 3, 7, 8, 12, 10, 14, 9, 13, 11, 15));
  const __m256i stored = _mm256_shuffle_epi8(load_32(a_block<kFormat>(tile, row, block)), order);
  const __m256i codes = _mm256_permute4x64_epi64(stored, 0xD8);  // so that halves unpack to 0..15 and 16..31
  const __m256i magnitudes = _mm256_and_si256(codes, _mm256_set1_epi8(0x7F));
  const __m256i low_bytes = _mm256_and_si256(magnitudes, _mm256_set1_epi16(0xFF));
  const int32_t amax = largest_u16(_mm256_max_epu16(low_bytes, _mm256_srli_epi16(magnitudes, 8)));
  __m256i* to = reinterpret_cast<__m256i*>(out);
  if (__builtin_expect(amax == 0x7F, 0)) {
    _mm256_storeu_si256(to, _mm256_setzero_si256());
    _mm256_storeu_si256(to + 1, _mm256_setzero_si256());
    return kf_f(kNanBits);
  }
  const int top = amax >= 8 ? (amax >> 3) + 2 : amax == 0 ? 0 : 31 - __builtin_clz(amax);
  const WindowTable& table = kWindowTables.of[top];
  const __m256i exponents = _mm256_and_si256(_mm256_srli_epi16(magnitudes, 3), _mm256_set1_epi8(15));
  const __m256i power_low = _mm256_shuffle_epi8(twice(load_16(table.power_low)), exponents);
  const __m256i power_high = _mm256_shuffle_epi8(twice(load_16(table.power_high)), exponents);
  const __m256i small = _mm256_blendv_epi8(_mm256_shuffle_epi8(twice(load_16(table.small[0])), magnitudes),
                                           _mm256_shuffle_epi8(twice(load_16(table.small[1])), magnitudes),
                                           _mm256_slli_epi16(magnitudes, 3));
  const __m256i normal = _mm256_or_si256(_mm256_and_si256(magnitudes, _mm256_set1_epi8(7)), _mm256_set1_epi8(8));
  const __m256i significands = _mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi8(_mm256_set1_epi8(32), magnitudes));
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low =
      _mm256_mullo_epi16(_mm256_unpacklo_epi8(significands, zero), _mm256_unpacklo_epi8(power_low, power_high));
  const __m256i high =
      _mm256_mullo_epi16(_mm256_unpackhi_epi8(significands, zero), _mm256_unpackhi_epi8(power_low, power_high));
  _mm256_storeu_si256(to, _mm256_sign_epi16(low, _mm256_unpacklo_epi8(codes, codes)));
  _mm256_storeu_si256(to + 1, _mm256_sign_epi16(high, _mm256_unpackhi_epi8(codes, codes)));
  const int exponent = amax == 0 ? 0 : top - 8;
  return window_factor<kFormat>(exponent, a_scale_row<kFormat>(tile, row), block);
}

// q of 16 bfloat16 words in the order of steps.
KF_INLINE __m256i cut_words(__m256i words, __m256 scale) {
  const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xFFFF0000))));
  const __m256i q =
      _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(even, scale)), _mm256_cvtps_epi32(_mm256_mul_ps(odd, scale)));
  return _mm256_shuffle_epi8(q, twice(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)));
}

KF_INLINE float cut_bf16(const MxTile& tile, int row, int block, uint8_t* out) {
  const uint8_t* stored = a_block<kBf16>(tile, row, block);
  __m256i words[2], largest = _mm256_setzero_si256();
  for (int i = 0; i < 2; ++i) {
    const __m256i raw = load_32(stored + 32 * i);
    const __m256i magnitude = _mm256_and_si256(raw, _mm256_set1_epi16(0x7FFF));
    const __m256i kept = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16(((127 - 50) << 7) - 1));
    words[i] = _mm256_and_si256(raw, kept);
    largest = _mm256_max_epu16(largest, _mm256_and_si256(magnitude, kept));
  }
  const int32_t amax = largest_u16(largest);
  __m256i* to = reinterpret_cast<__m256i*>(out);
  if (__builtin_expect(amax >= 0x7F80, 0)) {
    _mm256_storeu_si256(to, _mm256_setzero_si256());
    _mm256_storeu_si256(to + 1, _mm256_setzero_si256());
    return kf_f(kNanBits);
  }
  const int exponent = window_exponent(amax << 16);
  const __m256 scale = _mm256_set1_ps(power_of_two(15 - exponent));
  _mm256_storeu_si256(to, cut_words(words[0], scale));
  _mm256_storeu_si256(to + 1, cut_words(words[1], scale));
  return window_factor<kBf16>(exponent, nullptr, block);
}

KF_INLINE float cut_e2m1(const MxTile& tile, int row, int block, uint8_t* out, int32_t* bias) {
  const __m128i table = load_16(kTwiceE2m1);
  const __m128i packed = load_16(a_block<kE2m1>(tile, row, block)), low = _mm_set1_epi8(15);
  const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(packed, low));
  const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(packed, 4), low));
  __m128i* to = reinterpret_cast<__m128i*>(out);
  _mm_storeu_si128(to, _mm_unpacklo_epi32(even, odd));
  _mm_storeu_si128(to + 1, _mm_unpackhi_epi32(even, odd));
  const __m128i shifted = _mm_add_epi8(_mm_add_epi8(even, odd), _mm_set1_epi8(24));  // each in [0, 48]
  const __m128i halves = _mm_sad_epu8(shifted, _mm_setzero_si128());
  const int32_t sum = _mm_cvtsi128_si32(halves) + _mm_extract_epi32(halves, 2) - 24 * 16;
  *bias = (-kOffset * sum) & 0xFFFF;
  return 0.25f * read_scale(static_cast<const uint8_t*>(a_scale_row<kE2m1>(tile, row))[block]);
}

// Returns the largest factor's bits.
template <int kFormat>
int32_t cut_rows(const MxTile& tile, int row, int m, int first, const Rows<kFormat>& out) {
  LargestFactor largest;
  for (int r = 0; r < m; ++r) {
    for (int b = 0; b < out.blocks; ++b) {
      const int64_t at = r * out.room + b;
      float factor;
      if constexpr (kFormat == kE2m1) {
        factor = cut_e2m1(tile, row + r, first + b, out.at(r, b), out.bias + at);
      } else if constexpr (kFormat == kBf16) {
        factor = cut_bf16(tile, row + r, first + b, out.at(r, b));
      } else {
        factor = cut_e4m3<kFormat>(tile, row + r, first + b, out.at(r, b));
      }
      out.factor[at] = factor;
      largest.add(factor);
    }
  }
  return largest.bits;
}

// out[b], byte c: byte b of x[c].
KF_INLINE void transpose_bytes(const __m128i x[16], __m128i out[16]) {
  __m128i a[16], b[16];
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm_unpacklo_epi8(x[i], x[i + 8]);
    a[2 * i + 1] = _mm_unpackhi_epi8(x[i], x[i + 8]);
  }
  for (int i = 0; i < 8; ++i) {
    b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
    b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
  }
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 8]);
    a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 8]);
  }
  for (int i = 0; i < 8; ++i) {
    out[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
    out[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
  }
}

// read_scale of eight bytes.
KF_INLINE __m256 read_scales(__m128i bytes) {
  const __m256i byte = _mm256_cvtepu8_epi32(bytes);
  __m256i bits = _mm256_and_si256(_mm256_slli_epi32(byte, 23), _mm256_cmpgt_epi32(byte, _mm256_set1_epi32(127 - 51)));
  bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(kInfBits), _mm256_cmpgt_epi32(byte, _mm256_set1_epi32(127 + 63)));
  bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(kNanBits), _mm256_cmpeq_epi32(byte, _mm256_set1_epi32(255)));
  return _mm256_castsi256_ps(bits);
}

// Factors [blocks][16] of a strip; returns the largest one's bits.
KF_INLINE int32_t read_strip_scales(const StripRows& rows, int blocks, float* factors) {
  __m128i largest = _mm_setzero_si128();
  for (int first = 0; first < blocks; first += 16) {
    const int part = blocks - first < 16 ? blocks - first : 16;
    __m128i by_column[16], by_block[16];
    for (int c = 0; c < kStrip; ++c) {
      if (part == 16) {
        by_column[c] = load_16(rows.scales[c] + first);
      } else {
        alignas(16) uint8_t bytes[16] = {};
        std::memcpy(bytes, rows.scales[c] + first, part);
        by_column[c] = load_16(bytes);
      }
      const __m128i nan = _mm_cmpeq_epi8(by_column[c], _mm_set1_epi8(-1));
      largest = _mm_max_epu8(largest, _mm_andnot_si128(nan, by_column[c]));
    }
    transpose_bytes(by_column, by_block);
    for (int b = 0; b < part; ++b) {
      float* to = factors + (first + b) * kStrip;
      _mm256_storeu_ps(to, read_scales(by_block[b]));
      _mm256_storeu_ps(to + 8, read_scales(_mm_srli_si128(by_block[b], 8)));
    }
  }
  const __m128i words = _mm_max_epu16(_mm_and_si128(largest, _mm_set1_epi16(0xFF)), _mm_srli_epi16(largest, 8));
  return kf_i(read_scale(uint8_t(largest_u16(_mm256_castsi128_si256(words)))));
}

// out[g], lane c: bytes 4g .. 4g+3, `at` bytes into each of eight rows.
KF_INLINE void load_columns(const uint8_t* const rows[8], int64_t at, __m256i out[kOctets]) {
  __m256i x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm256_setr_m128i(load_16(rows[i] + at), load_16(rows[i + 4] + at));
  const __m256i a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpacklo_epi32(x[2], x[3]);
  const __m256i c = _mm256_unpackhi_epi32(x[0], x[1]), d = _mm256_unpackhi_epi32(x[2], x[3]);
  out[0] = _mm256_unpacklo_epi64(a, b);
  out[1] = _mm256_unpackhi_epi64(a, b);
  out[2] = _mm256_unpacklo_epi64(c, d);
  out[3] = _mm256_unpackhi_epi64(c, d);
}

// The steps of one group, from its packed codes.
template <int kFormat>
KF_INLINE void unpack_group(__m256i packed, __m256i out[kGroupSteps<kFormat>]) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i even = _mm256_and_si256(packed, low);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(packed, 4), low);
  const __m256i table = twice(load_16(kTwiceE2m1));
  if constexpr (two_slices<kFormat>) {
    const __m256i low_byte = _mm256_set1_epi16(1);
    const __m256i x = _mm256_shuffle_epi8(table, even), y = _mm256_shuffle_epi8(table, odd);
    out[0] = _mm256_maddubs_epi16(low_byte, x);  // the low bytes as signed words
    out[1] = _mm256_srai_epi16(x, 8);
    out[2] = _mm256_maddubs_epi16(low_byte, y);
    out[3] = _mm256_srai_epi16(y, 8);
  } else {
    const __m256i shifted = _mm256_add_epi8(table, _mm256_set1_epi8(kOffset));
    out[0] = _mm256_shuffle_epi8(shifted, even);
    out[1] = _mm256_shuffle_epi8(shifted, odd);
  }
}

template <int kFormat>
KF_INLINE __m256i multiply(__m256i w, __m256i a) {
  return two_slices<kFormat> ? _mm256_madd_epi16(w, a) : _mm256_maddubs_epi16(w, a);
}
template <int kFormat>
KF_INLINE __m256i add(__m256i x, __m256i y) {
  return two_slices<kFormat> ? _mm256_add_epi32(x, y) : _mm256_add_epi16(x, y);
}
KF_INLINE __m256i broadcast_4(const uint8_t* from) {
  int32_t bits;
  std::memcpy(&bits, from, 4);
  return _mm256_set1_epi32(bits);
}

// sum + the block's term, from what its steps add up to.
template <int kFormat>
KF_INLINE __m256 add_term(__m256 sum, __m256i steps, __m256 scale) {
  const __m256i integer = two_slices<kFormat> ? steps : _mm256_madd_epi16(steps, _mm256_set1_epi16(1));
  const __m256 value = _mm256_cvtepi32_ps(integer);
  if (may_fuse<kFormat>) return _mm256_fmadd_ps(value, scale, sum);
  return _mm256_add_ps(sum, _mm256_mul_ps(value, scale));
}

}  // namespace avx2
}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
