// Strips of W, staged for the dots of the AVX512-BF16 engine while the strip before is multiplied: packed codes stay
// packed, and are only brought into the order in which registers take them. That is done by scalar instructions, which
// take nothing from the dots.
#pragma once

#include <algorithm>

#include "core/transpose_512.h"
#include "mx/folded.h"

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

// Packed codes and scales of a strip as they lie in memory.
struct StripSource {
  const uint8_t* codes;
  const uint8_t* scales;
  int64_t ld_codes, ld_scales;
  int n, blocks;

  StripSource() = default;
  StripSource(const MxTile& tile, const Strip& strip)
      : codes(tile.w_row(strip.col) + int64_t(strip.first) * (kBlock / 2)),
        scales(tile.w_scale_row(strip.col) + strip.first),
        ld_codes(tile.ldw),
        ld_scales(tile.ld_w_scale),
        n(strip.n),
        blocks(strip.blocks) {}
  // Columns past `n` repeat the last one.
  KF_INLINE int column(int c) const { return c < n ? c : n - 1; }
  KF_INLINE const uint8_t* codes_of(int c) const { return codes + column(c) * ld_codes; }
  KF_INLINE const uint8_t* scales_of(int c) const { return scales + column(c) * ld_scales; }
  KF_INLINE int64_t row_bytes() const { return int64_t(blocks) * (kBlock / 2); }
};

// Brings packed codes into order, a column of a block at a time. A kernel keeps one to itself while it runs, so that
// its pointers stay in registers.
struct CodeStager {
  const uint8_t* block;   // the first column's codes of the block that is next
  const uint8_t* column;  // those of the column that is next
  int64_t ld;
  uint32_t* out;

  KF_INLINE void start_block() { column = block; }
  // Column `c`; a block's columns are staged from 0 to 15.
  KF_INLINE void stage(int c) {
    uint64_t low, high;
    std::memcpy(&low, column, 8);
    std::memcpy(&high, column + 8, 8);
    uint32_t* to = out + c;
    to[0] = uint32_t(low);
    to[kStrip] = uint32_t(low >> 32);
    to[2 * kStrip] = uint32_t(high);
    to[3 * kStrip] = uint32_t(high >> 32);
    column += ld;
  }
  KF_INLINE void end_block() {
    block += kBlock / 2;
    out += 4 * kStrip;
  }
};

// Asks for a strip's codes line by line, row after row: rows that follow each other in memory are then read from its
// first byte to its last, as the machine likes it best.
struct CodePrefetch {
  const uint8_t* line;
  const uint8_t* row_end;
  int64_t gap, ld;
  int rows, per_block;  // 0: nothing is left

  CodePrefetch() : per_block(0) {}
  CodePrefetch(const StripSource& from, int per_block)
      : line(from.codes),
        row_end(from.codes + from.row_bytes()),
        gap(from.ld_codes - from.row_bytes()),
        ld(from.ld_codes),
        rows(from.n),
        per_block(per_block) {}

  KF_INLINE void next() {
    constexpr int kLine = 64;
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
    line += kLine;
    if (line < row_end) return;
    line = row_end + gap;
    row_end += ld;
    if (--rows == 0) per_block = 0;
  }
};

// Stages a strip: its scales at once, its codes while kernels run.
class StripStager {
 public:
  CodeStager codes;
  CodePrefetch prefetch;

  // `after`: the strip that will be staged next, whose codes and scales are asked for meanwhile. `groups`: of rows,
  // each a run of a kernel.
  void start(const MxTile& tile, const Strip& strip, const Strip& after, int groups, const StagedStrip& out) {
    out_ = out;
    left_ = strip.blocks;
    prefetch = CodePrefetch();
    if (strip.blocks == 0) return;
    from_ = StripSource(tile, strip);
    codes = {from_.codes, from_.codes, from_.ld_codes, &out.codes[0][0][0]};
    stage_scales();
    if (after.blocks == 0) return;
    const StripSource next(tile, after);
    prefetch = CodePrefetch(next, (4 + groups - 1) / groups);
    for (int c = 0; c < next.n; ++c) {
      for (int b = 0; b < next.blocks; b += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(next.scales_of(c) + b), _MM_HINT_T0);
      }
    }
  }

  // Whether a kernel is to stage as many blocks as it takes. A strip without all its columns, or with fewer blocks, is
  // left to finish().
  bool wanted(int blocks) const { return left_ >= blocks && from_.n == kStrip; }
  // A kernel has staged as many blocks.
  void staged(int blocks) { left_ -= blocks; }

  // Returns the largest factor's bits, NaN apart.
  int32_t finish() {
    for (int b = from_.blocks - left_; b < from_.blocks; ++b) {
      for (int c = 0; c < kStrip; ++c) {
        codes.column = from_.codes_of(c) + int64_t(b) * (kBlock / 2);
        codes.stage(c);
      }
      codes.end_block();
    }
    if (special_) stage_special();
    return largest_;
  }

 private:
  void stage_scales() {
    const __m512i one = _mm512_set1_epi8(127), nan = _mm512_set1_epi8(-1);
    __m512i rows[kStrip], words[kStrip], least = one, largest = _mm512_setzero_si512(), most = largest;
    for (int first = 0; first < from_.blocks; first += 64) {
      const int blocks = from_.blocks - first;
      const __mmask64 inside = blocks < 64 ? (1ull << blocks) - 1 : ~0ull;
      for (int c = 0; c < kStrip; ++c) {
        rows[c] = _mm512_mask_loadu_epi8(one, inside, from_.scales_of(c) + first);
        least = _mm512_min_epu8(least, rows[c]);
        most = _mm512_max_epu8(most, rows[c]);
        largest = _mm512_mask_max_epu8(largest, _mm512_cmpneq_epu8_mask(rows[c], nan), largest, rows[c]);
      }
      transpose_words_512(rows, words);
      for (int i = 0; i < kStrip && 4 * i < blocks; ++i) _mm512_store_si512(out_.scales[first / 4 + i], words[i]);
    }
    special_ = _mm512_cmplt_epu8_mask(least, _mm512_set1_epi8(kLeastScale)) | _mm512_cmpeq_epu8_mask(most, nan);
    largest_ = kf_i(read_scale(uint8_t(largest_u8(largest))));
  }

  // Scales that are read as zero or NaN, which are no powers of two: zeros for codes; and a NaN's exponent.
  void stage_special() {
    for (int b = 0; b < from_.blocks; ++b) {
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

  StripSource from_;
  StagedStrip out_;
  int left_;  // blocks that are not staged
  int32_t largest_;
  bool special_;
};

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
