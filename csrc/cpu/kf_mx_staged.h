// Strips of W, staged for the dots of the AVX512-BF16 engine while the strip before is multiplied: packed codes stay
// packed, and are only brought into the order in which registers take them. That is done by scalar instructions, which
// take nothing from the dots.
#pragma once

#include <algorithm>

#include "kf_mx_folded.h"
#include "kf_transpose_512.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

// A strip by a chunk of blocks, and the rows it is multiplied with. They are taken by chunk of blocks, then of rows,
// then of columns.
struct Strip {
  static constexpr int kBlocks = 128, kRows = 96;  // at most

  int first, blocks, row, m, col, n;  // none left: blocks is 0

  static Strip at(const MxTile& tile, int first, int row, int col) {
    const int blocks = std::max(0, std::min(kBlocks, tile.blocks() - first));
    const int parts = (tile.m + kRows - 1) / kRows, m = (tile.m + parts - 1) / parts;
    return {first, blocks, row, std::min(m, tile.m - row), col, std::min(kStrip, tile.n - col)};
  }
  Strip next(const MxTile& tile) const {
    if (col + n < tile.n) return at(tile, first, row, col + n);
    if (row + m < tile.m) return at(tile, first, row + m, 0);
    return at(tile, first + blocks, 0, 0);
  }
};

// A strip's packed codes: [block][j][column] holds codes 8j .. 8j+7; and its scale bytes: [block / 4][column][block %
// 4].
struct StagedStrip {
  using Codes = uint32_t[4][kStrip];
  Codes* codes;
  uint8_t (*scales)[kStrip][4];

  static constexpr size_t bytes(int blocks) { return blocks * sizeof(Codes) + (blocks + 3) / 4 * kStrip * 4; }
};

// bf16 of twice an E2M1 value, less the exponent's bias, which the scale's byte brings along; and all ones but for
// zeros, which have no exponent. vpermw looks at five bits of its index, hence twice the sixteen.
alignas(64) constexpr uint16_t kUnbiasedE2m1[32] = {0x0000, 0x0000, 0x0080, 0x00C0, 0x0100, 0x0140, 0x0180, 0x01C0,
                                                    0x0000, 0x8000, 0x8080, 0x80C0, 0x8100, 0x8140, 0x8180, 0x81C0,
                                                    0x0000, 0x0000, 0x0080, 0x00C0, 0x0100, 0x0140, 0x0180, 0x01C0,
                                                    0x0000, 0x8000, 0x8080, 0x80C0, 0x8100, 0x8140, 0x8180, 0x81C0};
alignas(64) constexpr uint16_t kNotZeroE2m1[32] = {0, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF,
                                                   0, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF,
                                                   0, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF,
                                                   0, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF};

alignas(64) constexpr uint8_t kScaleOfWord[4][64] = {
#define KF_LANE(b) \
  0 + b, 0x80, 0 + b, 0x80, 4 + b, 0x80, 4 + b, 0x80, 8 + b, 0x80, 8 + b, 0x80, 12 + b, 0x80, 12 + b, 0x80
#define KF_LANES(b) {KF_LANE(b), KF_LANE(b), KF_LANE(b), KF_LANE(b)}
    KF_LANES(0), KF_LANES(1), KF_LANES(2), KF_LANES(3)
#undef KF_LANES
#undef KF_LANE
};

// bf16 of w * fw from codes in the low bits of 16-bit words. Not fold_nibbles: a saturating addition takes a cycle of
// the dots' units (Zen 4), a second permutation and an `and` take none.
struct StagedFold {
  __m512i twice, kept;

  KF_INLINE StagedFold() : twice(_mm512_load_si512(kUnbiasedE2m1)), kept(_mm512_load_si512(kNotZeroE2m1)) {}

  KF_INLINE static __m512i exponents(const StagedStrip& strip, int64_t block) {
    const __m512i bytes = _mm512_load_si512(strip.scales[block / 4]);
    return _mm512_slli_epi16(_mm512_shuffle_epi8(bytes, _mm512_load_si512(kScaleOfWord[block % 4])), 7);
  }
  KF_INLINE __m512i operator()(__m512i nibbles, __m512i exponents) const {
    const __m512i words = _mm512_add_epi16(_mm512_permutexvar_epi16(nibbles, twice), exponents);
    return _mm512_and_si512(words, _mm512_permutexvar_epi16(nibbles, kept));
  }
};

// Stages a strip: its scales at once, its codes block by block, column by column.
class StripStager {
 public:
  // `after`: the strip that will be staged next, whose codes and scales are asked for: few bytes of each of many rows,
  // which no hardware prefetcher foresees.
  void start(const MxTile& tile, const Strip& strip, const Strip& after, const StagedStrip& out) {
    out_ = out;
    block_ = 0;
    blocks_ = strip.blocks;
    if (blocks_ == 0) return;
    rows_ = StripRows(tile, strip.col, strip.n, strip.first);
    stage_scales();
    if (after.blocks == 0) {
      ahead_ = rows_;
      return;
    }
    ahead_ = StripRows(tile, after.col, after.n, after.first);
    for (const uint8_t* scales : ahead_.scales) {
      for (int b = 0; b < after.blocks; b += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(scales + b), _MM_HINT_T0);
      }
    }
  }

  bool done() const { return block_ == blocks_; }

  // Column c of the current block.
  KF_INLINE void stage(int c) const {
    const uint8_t* from = rows_.codes[c] + block_ * (kBlock / 2);
    uint64_t low, high;
    std::memcpy(&low, from, 8);
    std::memcpy(&high, from + 8, 8);
    uint32_t* to = &out_.codes[block_][0][c];
    to[0] = uint32_t(low);
    to[kStrip] = uint32_t(low >> 32);
    to[2 * kStrip] = uint32_t(high);
    to[3 * kStrip] = uint32_t(high >> 32);
  }
  // One of the four lines that block `b` stands for in the strip after, j from 0 to 3.
  KF_INLINE void prefetch(uint32_t b, uint32_t j) const {
    constexpr int kLine = 64;
    const char* row = reinterpret_cast<const char*>(ahead_.codes[b % 4 * 4 + j]);
    _mm_prefetch(row + b / 4 * kLine, _MM_HINT_T0);
  }
  KF_INLINE void next_block() { ++block_; }

  // Returns the largest factor's bits, NaN apart.
  int32_t finish() {
    for (; !done(); next_block()) {
      for (int c = 0; c < kStrip; ++c) stage(c);
    }
    if (special_) stage_special();
    return largest_;
  }

 private:
  void stage_scales() {
    const __m512i one = _mm512_set1_epi8(127), nan = _mm512_set1_epi8(-1);
    __m512i rows[kStrip], words[kStrip], least = one, largest = _mm512_setzero_si512(), most = largest;
    for (uint32_t first = 0; first < blocks_; first += 64) {
      const uint32_t blocks = blocks_ - first;
      const __mmask64 inside = blocks < 64 ? (1ull << blocks) - 1 : ~0ull;
      for (int c = 0; c < kStrip; ++c) {
        rows[c] = _mm512_mask_loadu_epi8(one, inside, rows_.scales[c] + first);
        least = _mm512_min_epu8(least, rows[c]);
        most = _mm512_max_epu8(most, rows[c]);
        largest = _mm512_mask_max_epu8(largest, _mm512_cmpneq_epu8_mask(rows[c], nan), largest, rows[c]);
      }
      transpose_words_512(rows, words);
      for (uint32_t i = 0; i < kStrip && 4 * i < blocks; ++i) _mm512_store_si512(out_.scales[first / 4 + i], words[i]);
    }
    special_ = _mm512_cmplt_epu8_mask(least, _mm512_set1_epi8(kLeastScale)) | _mm512_cmpeq_epu8_mask(most, nan);
    largest_ = kf_i(read_scale(uint8_t(largest_u8(largest))));
  }

  // Scales that are read as zero or NaN, which are no powers of two: zeros for codes; and a NaN's exponent.
  void stage_special() {
    for (uint32_t b = 0; b < blocks_; ++b) {
      for (int c = 0; c < kStrip; ++c) {
        uint8_t& scale = out_.scales[b / 4][c][b % 4];
        if (scale >= kLeastScale && scale != 0xFF) continue;
        const uint32_t codes = scale == 0xFF ? 0x33333333 : 0;
        for (int j = 0; j < 4; ++j) out_.codes[b][j][c] = codes;
        if (scale == 0xFF) scale = 0xFE;  // 0x7F00, to which a 3 adds 0x00C0
      }
    }
  }

  static constexpr uint8_t kLeastScale = 127 - 50;

  StripRows rows_, ahead_;
  StagedStrip out_;
  uint32_t block_, blocks_;
  int32_t largest_;
  bool special_;
};

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
