// Panels of W, two strips by a chunk of blocks, each brought near and folded while panels before it are multiplied: the
// dot units leave shuffles, stores and the memory idle, and a core that is given both does both at a time.
#pragma once

#include "kf_mx_folded.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

// A panel and the rows it is multiplied with. They are taken by chunk of blocks, then of rows, then of columns.
struct Panel {
  static constexpr int kBlocks = 64, kRows = 512;  // at most

  int first, blocks, row, m, col, n;  // none left: blocks is 0

  static Panel at(const MxTile& tile, int first, int row, int col) {
    const int blocks = std::max(0, std::min(kBlocks, tile.blocks() - first));
    return {first, blocks, row, std::min(kRows, tile.m - row), col, std::min(kPanel, tile.n - col)};
  }
  Panel next(const MxTile& tile) const {
    if (col + n < tile.n) return at(tile, first, row, col + n);
    if (row + m < tile.m) return at(tile, first, row + m, 0);
    return at(tile, first + blocks, 0, 0);
  }
};

// Asks for a panel's packed codes and scales line by line: few bytes of each of many rows, which no hardware
// prefetcher foresees, and more lines than may be under way at a time.
class PanelPrefetch {
 public:
  KF_INLINE void start(const MxTile& tile, const Panel& panel) {
    codes_ = reinterpret_cast<const char*>(tile.w_row(panel.col)) + int64_t(panel.first) * (kBlock / 2);
    scales_ = reinterpret_cast<const char*>(tile.w_scale_row(panel.col)) + panel.first;
    ld_codes_ = tile.ldw;
    ld_scales_ = tile.ld_w_scale;
    bytes_ = panel.blocks * (kBlock / 2);
    columns_ = panel.blocks == 0 ? 0 : panel.n;
    at_ = 0;
  }
  KF_INLINE void step() {
    constexpr int kLine = 64;
    if (columns_ == 0) return;
    _mm_prefetch(codes_ + at_, _MM_HINT_T0);
    at_ += kLine;
    if (at_ < bytes_) return;
    _mm_prefetch(scales_, _MM_HINT_T0);
    codes_ += ld_codes_;
    scales_ += ld_scales_;
    at_ = 0;
    --columns_;
  }

 private:
  const char* codes_;
  const char* scales_;
  int64_t ld_codes_, ld_scales_;
  int bytes_, columns_, at_;
};

// Folds a panel in steps of a quarter of a strip's block.
class PanelFolder {
 public:
  static constexpr int64_t words(int blocks) { return int64_t(2) * blocks * kBlock * kStrip; }

  // out: [2][blocks][16 pairs of k][16 columns][2]; a lone strip is taken twice, its copy to be discarded.
  void start(const MxTile& tile, const Panel& panel, uint16_t* out) {
    out_ = out;
    blocks_ = panel.blocks;
    at_ = 0;
    end_ = 4 * 2 * blocks_;
    largest_ = 0;
    special_ = false;
    if (blocks_ == 0) return;
    const int second = panel.n > kStrip ? kStrip : 0;
    rows_[0] = StripRows(tile, panel.col, std::min(panel.n, kStrip), panel.first);
    rows_[1] = StripRows(tile, panel.col + second, panel.n - second, panel.first);
    for (int strip = 0; strip < 2; ++strip) {
      StripScales scales(rows_[strip], blocks_);
      for (int b = 0; b < blocks_; ++b) {
        const int i = strip * blocks_ + b;
        const __m512i bytes = scales.bytes(b);
        _mm512_store_si512(exponents_[i], fold_exponents(bytes));
        specials_[i] = SpecialScales(bytes);
        special_ |= specials_[i].any();
      }
      largest_ = std::max(largest_, scales.largest_bits());
    }
  }

  KF_INLINE void step() {
    if (at_ == end_) return;
    const int i = at_ / 4, quarter = at_ % 4;
    if (quarter == 0) {
      const bool second = i >= blocks_;
      __m512i packed[4];
      load_strip_block(rows_[second], second ? i - blocks_ : i, packed);
      for (int j = 0; j < 4; ++j) _mm512_store_si512(packed_[j], packed[j]);
    }
    fold_quarter(_mm512_load_si512(packed_[quarter]), _mm512_load_si512(exponents_[i]), out_ + at_ * 4 * kBlock);
    ++at_;
  }

  // Returns the largest factor's bits.
  int32_t finish() {
    while (at_ != end_) step();
    for (int i = 0; special_ && i < 2 * blocks_; ++i) specials_[i].write(out_ + i * kBlock * kStrip);
    return largest_;
  }

 private:
  alignas(64) uint8_t packed_[4][64];
  alignas(64) uint16_t exponents_[2 * Panel::kBlocks][2 * kStrip];
  SpecialScales specials_[2 * Panel::kBlocks];
  StripRows rows_[2];
  uint16_t* out_;
  int blocks_, at_, end_;
  int32_t largest_;
  bool special_;
};

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
