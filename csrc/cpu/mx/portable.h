// The engine every CPU has, and the one that takes tiles with infinite or overflowing scales for the others.
//
// The block dot is done in fp32 on integers: every partial sum is an integer below 2^24, hence exact in any
// order and with or without fused operations.
#pragma once

#include <algorithm>

#include "core/scratch.h"
#include "mx/tile.h"

namespace kf {
namespace {

constexpr int kPortableRows = 4;

// A 4 x 16 tile over one chunk of blocks. q: [rows][blocks*32], w: [blocks*32][16].
template <int kRows>
KF_INLINE void portable_kernel(float* acc, int64_t ld_acc, const float* q, int64_t ldq, const float* fa, int64_t ld_fa,
                               const float* w, const float* fw, int blocks, int n) {
  float sums[kRows][kStrip] = {};
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < n; ++c) sums[r][c] = acc[r * ld_acc + c];
  }
  for (int b = 0; b < blocks; ++b) {
    float dots[kRows][kStrip] = {};
    for (int i = 0; i < kBlock; ++i) {
      const float* column = w + (int64_t(b) * kBlock + i) * kStrip;
      for (int r = 0; r < kRows; ++r) {
        const float left = q[r * ldq + b * kBlock + i];
        for (int c = 0; c < kStrip; ++c) dots[r][c] += left * column[c];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const float factor = fa[r * ld_fa + b];
      for (int c = 0; c < kStrip; ++c) {
        const float scale = factor * fw[b * kStrip + c];
        const float term = dots[r][c] * scale;
        sums[r][c] = sums[r][c] + term;
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < n; ++c) acc[r * ld_acc + c] = sums[r][c];
  }
}

// Uses its own scratch: the engines call it while theirs is in use.
template <int kFormat>
int portable_accumulate(const MxTile& tile) {
  constexpr int kChunk = 16, kRowChunk = 128;  // blocks and rows converted at a time
  static thread_local Scratch scratch;
  const int rows = std::min(tile.m, kRowChunk);
  const int chunk = std::min(tile.blocks(), kChunk);
  const int64_t ldq = int64_t(chunk) * kBlock;
  const size_t floats = rows * (ldq + chunk) + (ldq + chunk) * kStrip;
  if (!scratch.reserve((floats + 4 * kStrip) * sizeof(float))) return kOutOfMemory;
  float* q = scratch.take<float>(rows * ldq);
  float* fa = scratch.take<float>(rows * chunk);
  float* w = scratch.take<float>(ldq * kStrip);
  float* fw = scratch.take<float>(chunk * kStrip);
  if (tile.clear) clear_sums(tile.acc, tile.ld_acc, tile.m, tile.n);
  for (int first = 0; first < tile.blocks(); first += chunk) {
    const int blocks = std::min(chunk, tile.blocks() - first);
    for (int row = 0; row < tile.m; row += rows) {
      const int m = std::min(rows, tile.m - row);
      for (int r = 0; r < m; ++r) {
        for (int b = 0; b < blocks; ++b) {
          fa[r * chunk + b] = read_block<kFormat>(tile, row + r, first + b, q + r * ldq + b * kBlock);
        }
      }
      for (int col = 0; col < tile.n; col += kStrip) {
        const int n = std::min(kStrip, tile.n - col);
        for (int c = 0; c < kStrip; ++c) {
          const int source = col + std::min(c, n - 1);
          const uint8_t* packed = tile.w_row(source) + int64_t(first) * (kBlock / 2);
          const uint8_t* scales = tile.w_scale_row(source) + first;
          for (int i = 0; i < blocks * kBlock / 2; ++i) {
            w[(2 * i) * kStrip + c] = kTwiceE2m1[packed[i] & 15];
            w[(2 * i + 1) * kStrip + c] = kTwiceE2m1[packed[i] >> 4];
          }
          for (int b = 0; b < blocks; ++b) fw[b * kStrip + c] = read_scale(scales[b]);
        }
        float* acc = tile.acc + row * tile.ld_acc + col;
        int r = 0;
        for (; r + kPortableRows <= m; r += kPortableRows) {
          portable_kernel<kPortableRows>(acc + r * tile.ld_acc, tile.ld_acc, q + r * ldq, ldq, fa + r * chunk, chunk, w,
                                         fw, blocks, n);
        }
        for (; r < m; ++r) {
          portable_kernel<1>(acc + r * tile.ld_acc, tile.ld_acc, q + r * ldq, ldq, fa + r * chunk, chunk, w, fw, blocks,
                             n);
        }
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
