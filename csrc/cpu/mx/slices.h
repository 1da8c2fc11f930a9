// What the int8 engines (AVX512-VNNI, AVX2, NEON) share: an operand in slices, and the loops over a tile.
//
// The block's integer is I = 256 * (hi . w) + (lo . w), with q = 256 * hi + lo (format e2m1 has lo alone). Within
// a block, both sides hold the 16 even elements, then the 16 odd ones: that is how nibbles come apart.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/scratch.h"
#include "mx/portable.h"
#include "mx/tile.h"

namespace kf {
namespace {

constexpr int kStripBytes = kBlock * kStrip;  // one block of a strip: [8 groups of 4 elements][16 columns][4]
constexpr int kPanel = 2 * kStrip;            // columns a kernel takes
constexpr int kPanelRows = 6;                 // rows a kernel takes, at most

// Rows of the A operand over one chunk of blocks.
struct SlicedRows {
  int8_t* lo;      // [rows][blocks * 32]
  int8_t* hi;      // same, unused by format e2m1
  int32_t* bias;   // [rows][blocks]: -offset * sum of q, cancels the offset that made w unsigned
  float* factor;   // [rows][blocks]
  int64_t blocks;  // leading dimension of bias and factor

  KF_INLINE SlicedRows from(int row) const {
    const int64_t bytes = row * blocks * kBlock;
    return {lo + bytes, hi + bytes, bias + row * blocks, factor + row * blocks, blocks};
  }
};

// Two strips of the W operand over the same chunk.
struct SlicedPanel {
  uint8_t* codes;  // [2][blocks][kStripBytes]
  float* factor;   // [2][blocks][16]
  int64_t blocks;
  bool clear;  // the sums start from zero
};

template <int kFormat>
constexpr bool two_slices = kFormat != kE2m1;
template <int kFormat>
constexpr bool may_fuse = kFormat != kE4m3F32;  // fp32 scales have 24 bits: the product rounds

// Portable slicing of one block, for engines without their own.
template <int kFormat, int kOffset>
KF_INLINE float slice_one_block(const MxTile& tile, int row, int block, const SlicedRows& out, int64_t at) {
  float q[kBlock];
  const float factor = read_block<kFormat>(tile, row, block, q);
  int8_t* lo = out.lo + at * kBlock;
  int8_t* hi = out.hi + at * kBlock;
  int32_t sum = 0;
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < kBlock / 2; ++i) {
      const int32_t value = int32_t(q[2 * i + half]);
      sum += value;
      lo[half * (kBlock / 2) + i] = int8_t(value);
      if (two_slices<kFormat>) hi[half * (kBlock / 2) + i] = int8_t((value + 128) >> 8);
    }
  }
  out.bias[at] = -kOffset * sum;
  out.factor[at] = factor;
  return factor;
}

template <int kFormat, int kOffset>
KF_INLINE int32_t slice_rows(const MxTile& tile, int row, int m, int first, int blocks, const SlicedRows& out) {
  LargestFactor largest;
  for (int r = 0; r < m; ++r) {
    for (int b = 0; b < blocks; ++b) {
      largest.add(slice_one_block<kFormat, kOffset>(tile, row + r, first + b, out, int64_t(r) * blocks + b));
    }
  }
  return largest.bits;
}

// Portable unpacking of a strip, for engines without their own. Columns past `n` repeat the last one.
template <int kOffset>
KF_INLINE int32_t unpack_strip(const MxTile& tile, int col, int n, int first, int blocks, uint8_t* codes,
                               float* factors) {
  LargestFactor largest;
  for (int c = 0; c < kStrip; ++c) {
    const int source = col + std::min(c, n - 1);
    const uint8_t* packed = tile.w_row(source) + int64_t(first) * (kBlock / 2);
    const uint8_t* scales = tile.w_scale_row(source) + first;
    for (int b = 0; b < blocks; ++b) {
      uint8_t* out = codes + int64_t(b) * kStripBytes + c * 4;
      for (int i = 0; i < kBlock / 2; ++i) {
        const uint8_t byte = packed[b * (kBlock / 2) + i];
        const int at = i / 4 * (kStrip * 4) + i % 4;
        out[at] = uint8_t(kTwiceE2m1[byte & 15] + kOffset);
        out[at + kStripBytes / 2] = uint8_t(kTwiceE2m1[byte >> 4] + kOffset);
      }
      factors[b * kStrip + c] = read_scale(scales[b]);
      largest.add(factors[b * kStrip + c]);
    }
  }
  return largest.bits;
}

// Rows of the next group when `m` are left. With kEven, groups of 6, 4, 2 or 1; else as few groups as there can be, of
// about the same height: a kernel of two rows takes nearly the time of one of four.
template <bool kEven>
KF_INLINE int group_rows(int m) {
  if (kEven) return m >= 6 ? 6 : m >= 4 ? 4 : m >= 2 ? 2 : 1;
  const int groups = (m + kPanelRows - 1) / kPanelRows;
  return (m + groups - 1) / groups;
}

// Calls body(std::integral_constant<int, rows>, first row, acc, ld_acc) for groups of the m rows.
// Narrow panels (n < kPanel) are computed in `edge` [kPanelRows][kPanel], so kernels always see full ones.
template <bool kEven, class Body>
KF_INLINE void for_row_groups(float* acc, int64_t ld_acc, int m, int n, float* edge, const Body& body) {
  const bool full = n == kPanel;
  const size_t bytes = n * sizeof(float);
  for (int r = 0, rows; r < m; r += rows) {
    rows = group_rows<kEven>(m - r);
    float* home = acc + r * ld_acc;
    float* out = full ? home : edge;
    const int64_t ld_out = full ? ld_acc : kPanel;
    for (int i = 0; !full && i < rows; ++i) std::memcpy(edge + i * kPanel, home + i * ld_acc, bytes);
    switch (rows) {
      case 6:
        body(std::integral_constant<int, 6>(), r, out, ld_out);
        break;
      case 5:
        if constexpr (!kEven) body(std::integral_constant<int, 5>(), r, out, ld_out);
        break;
      case 4:
        body(std::integral_constant<int, 4>(), r, out, ld_out);
        break;
      case 3:
        if constexpr (!kEven) body(std::integral_constant<int, 3>(), r, out, ld_out);
        break;
      case 2:
        body(std::integral_constant<int, 2>(), r, out, ld_out);
        break;
      default:
        body(std::integral_constant<int, 1>(), r, out, ld_out);
    }
    for (int i = 0; !full && i < rows; ++i) std::memcpy(home + i * ld_acc, edge + i * kPanel, bytes);
  }
}

// Runs `Engine` over the tile. Engine has: kOffset; kEvenRows, whether its kernel takes pairs of rows;
// slice<kFormat>(tile, row, m, first, blocks, rows) and unpack(tile, col, n, first, blocks, codes, factors) -> largest
// factor's bits; kernel<kFormat, kRows>(...).
template <class Engine, int kFormat>
int sliced_accumulate(const MxTile& tile) {
  constexpr int kChunk = 32, kRowChunk = 256;
  const int chunk = std::min(tile.blocks(), kChunk), row_chunk = std::min(tile.m, kRowChunk);
  const size_t cells = size_t(chunk) * row_chunk;
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(cells * (2 * kBlock + sizeof(int32_t) + sizeof(float)) +
                       size_t(chunk) * 2 * (kStripBytes + kStrip * sizeof(float)) +
                       kPanelRows * kPanel * sizeof(float) + 8 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  SlicedRows rows;
  rows.lo = scratch.take<int8_t>(cells * kBlock);
  rows.hi = scratch.take<int8_t>(cells * kBlock);
  rows.bias = scratch.take<int32_t>(cells);
  rows.factor = scratch.take<float>(cells);
  SlicedPanel panel;
  panel.codes = scratch.take<uint8_t>(size_t(chunk) * 2 * kStripBytes);
  panel.factor = scratch.take<float>(size_t(chunk) * 2 * kStrip);
  float* edge = scratch.take<float>(kPanelRows * kPanel);

  for (int first = 0; first < tile.blocks(); first += chunk) {
    const int blocks = std::min(chunk, tile.blocks() - first);
    rows.blocks = panel.blocks = blocks;
    panel.clear = tile.clear && first == 0;
    for (int row = 0; row < tile.m; row += row_chunk) {
      const int m = std::min(row_chunk, tile.m - row);
      const int32_t largest_a = Engine::template slice<kFormat>(tile, row, m, first, blocks, rows);
      for (int col = 0; col < tile.n; col += kPanel) {
        const int n = std::min(kPanel, tile.n - col);
        int32_t largest_w = Engine::unpack(tile, col, std::min(n, kStrip), first, blocks, panel.codes, panel.factor);
        const int second = n > kStrip ? kStrip : 0;  // a lone strip is taken twice, the copy discarded
        largest_w = std::max(largest_w, Engine::unpack(tile, col + second, n > kStrip ? n - kStrip : n, first, blocks,
                                                       panel.codes + int64_t(blocks) * kStripBytes,
                                                       panel.factor + int64_t(blocks) * kStrip));
        if (may_fuse<kFormat> && !fused_is_exact(largest_a, largest_w)) {
          const int status = portable_accumulate<kFormat>(part<kFormat>(tile, row, m, col, n, first, blocks));
          if (status != kOk) return status;
          continue;
        }
        const auto group_kernel = [&](auto group, int r, float* out, int64_t ld_out) {
          Engine::template kernel<kFormat, decltype(group)::value>(out, ld_out, rows.from(r), panel);
        };
        for_row_groups<Engine::kEvenRows>(tile.acc + row * tile.ld_acc + col, tile.ld_acc, m, n, edge, group_kernel);
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
