// AMX-BF16. One tdpbf16ps (16 x 16 x 32) is one MX block.
//
// The instruction is defined to sum its 32 products apart, from zero, and to add that sum to the accumulator with
// one rounding to nearest even (Intel SDM, TDPBF16PS). On folded operands the products' sum is exact, so the tile
// register accumulates blocks exactly as the contract orders it. It flushes subnormals; no operand, product or sum
// here is one.
#pragma once

#include "core/amx_tiles.h"
#include "mx/folded.h"

#if defined(KF_X86)
KF_TARGET_BEGIN(
    "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")
namespace kf {
namespace {

constexpr int kTileWords = kStrip * kBlock;  // bf16 in one tile of either operand
constexpr int kAmxRows = 32;                 // rows of a kernel: two tiles
constexpr int kAmxRowStride = kBlock * 2;    // bytes

struct AmxOperands {
  const uint16_t* a;    // [blocks][2 row tiles][16][32]
  const uint16_t* w;    // [2 strips][blocks][16 pairs][16][2]
  const float* factor;  // [blocks][ld_factor rows], fp32 scales only
  int64_t ld_factor;
  int64_t blocks;
};

// Two row tiles (one if !kTwo) by two strips. acc has kAmxRows x kPanel writable elements, or half of that.
template <bool kTwo>
KF_INLINE void amx_kernel(float* acc, int64_t ld_acc, const AmxOperands& x) {
  const int64_t ld = ld_acc * 4;
  float* below = acc + kStrip * ld_acc;
  _tile_loadd(0, acc, ld);
  _tile_loadd(1, acc + kStrip, ld);
  if (kTwo) {
    _tile_loadd(2, below, ld);
    _tile_loadd(3, below + kStrip, ld);
  }
  const uint16_t* a = x.a;
  const uint16_t* w = x.w;
  // A comes from the second cache level and is hinted as passing through, so that W's panel stays in the first.
  for (int64_t b = 0; b < x.blocks; ++b, a += 2 * kTileWords, w += kTileWords) {
    _tile_stream_loadd(4, a, kAmxRowStride);
    _tile_loadd(6, w, kAmxRowStride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + x.blocks * kTileWords, kAmxRowStride);
    _tile_dpbf16ps(1, 4, 7);
    if (kTwo) {
      _tile_stream_loadd(5, a + kTileWords, kAmxRowStride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, acc, ld);
  _tile_stored(1, acc + kStrip, ld);
  if (kTwo) {
    _tile_stored(2, below, ld);
    _tile_stored(3, below + kStrip, ld);
  }
}

// The same with a factor per row and block, whose product with the block's sum rounds on its own.
template <bool kTwo>
KF_INLINE void amx_scaled_kernel(float* acc, int64_t ld_acc, const AmxOperands& x) {
  alignas(64) float sums[kAmxRows][kPanel];
  constexpr int kRows = kTwo ? kAmxRows : kStrip;
  constexpr int64_t kLd = kPanel * 4;
  const uint16_t* a = x.a;
  const uint16_t* w = x.w;
  for (int64_t b = 0; b < x.blocks; ++b, a += 2 * kTileWords, w += kTileWords) {
    _tile_stream_loadd(4, a, kAmxRowStride);
    _tile_loadd(6, w, kAmxRowStride);
    _tile_loadd(7, w + x.blocks * kTileWords, kAmxRowStride);
    _tile_zero(0);
    _tile_dpbf16ps(0, 4, 6);
    _tile_zero(1);
    _tile_dpbf16ps(1, 4, 7);
    if (kTwo) {
      _tile_stream_loadd(5, a + kTileWords, kAmxRowStride);
      _tile_zero(2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_zero(3);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, kLd);
    _tile_stored(1, sums[0] + kStrip, kLd);
    if (kTwo) {
      _tile_stored(2, sums[kStrip], kLd);
      _tile_stored(3, sums[kStrip] + kStrip, kLd);
    }
    for (int r = 0; r < kRows; ++r) {
      const __m512 factor = _mm512_set1_ps(x.factor[b * x.ld_factor + r]);
      for (int c = 0; c < kPanel; c += kStrip) {
        float* at = acc + r * ld_acc + c;
        const __m512 term = _mm512_mul_ps(_mm512_load_ps(sums[r] + c), factor);
        _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), term));
      }
    }
  }
}

template <int kFormat, bool kTwo>
KF_INLINE void amx_panel(float* acc, int64_t ld_acc, const AmxOperands& x) {
  if (kFormat == kE4m3F32) {
    amx_scaled_kernel<kTwo>(acc, ld_acc, x);
  } else {
    amx_kernel<kTwo>(acc, ld_acc, x);
  }
}

// Moves `n` columns of the sums between the caller's memory and the panel.
KF_INLINE void copy_columns(float* to, int64_t ld_to, const float* from, int64_t ld_from, int rows, int n) {
  if (n == kPanel) {
    for (int r = 0; r < rows; ++r) {
      _mm512_storeu_ps(to + r * ld_to, _mm512_loadu_ps(from + r * ld_from));
      _mm512_storeu_ps(to + r * ld_to + kStrip, _mm512_loadu_ps(from + r * ld_from + kStrip));
    }
  } else {
    for (int r = 0; r < rows; ++r) std::memcpy(to + r * ld_to, from + r * ld_from, n * sizeof(float));
  }
}

// Asks for the packed codes a later fold_strip will read: 32 rows a stride apart, which no hardware prefetcher follows.
KF_INLINE void prefetch_codes(const MxTile& tile, int col, int first, int blocks) {
  const int end = std::min(col + kPanel, tile.n), bytes = std::min(blocks, tile.blocks() - first) * (kBlock / 2);
  for (int c = col; c < end; ++c) {
    const char* codes = reinterpret_cast<const char*>(tile.w_row(c) + int64_t(first) * (kBlock / 2));
    for (int at = 0; at < bytes; at += 64) _mm_prefetch(codes + at, _MM_HINT_T1);
  }
}

template <int kFormat>
int amx_accumulate(const MxTile& tile) {
  constexpr int kRowChunk = 256, kCells = 256 * 64, kPanelBlocks = 12;
  const int row_chunk = std::min((tile.m + kAmxRows - 1) / kAmxRows * kAmxRows, kRowChunk);
  const int chunk = std::min(tile.blocks(), kCells / row_chunk / kBlocksPerF32Scale * kBlocksPerF32Scale);
  const int w_chunk = std::min(chunk, kPanelBlocks);
  const size_t cells = size_t(row_chunk) * chunk;
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(cells * (kBlock * 2 + sizeof(float)) + size_t(w_chunk) * 2 * kTileWords * 2 +
                       size_t(row_chunk) * kPanel * sizeof(float) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  uint16_t* a = scratch.take<uint16_t>(cells * kBlock);
  float* factor = scratch.take<float>(cells);
  uint16_t* w = scratch.take<uint16_t>(size_t(w_chunk) * 2 * kTileWords);
  float* sums = scratch.take<float>(size_t(row_chunk) * kPanel);
  const AmxTiles tiles;

  for (int first = 0; first < tile.blocks(); first += chunk) {
    const int blocks = std::min(chunk, tile.blocks() - first);
    for (int row = 0; row < tile.m; row += row_chunk) {
      const int m = std::min(row_chunk, tile.m - row);
      const int padded = (m + kAmxRows - 1) / kAmxRows * kAmxRows;
      const FoldedRows<kAmxRows> folded{a, padded, blocks, w_chunk};
      const int32_t largest_a = fold_rows<kFormat>(tile, row, m, first, folded, factor);
      for (int col = 0; col < tile.n; col += kPanel) {
        const int n = std::min(kPanel, tile.n - col);
        float* acc = tile.acc + row * tile.ld_acc + col;
        if (tile.clear && first == 0) {
          clear_sums(sums, kPanel, m, kPanel);
        } else {
          copy_columns(sums, kPanel, acc, tile.ld_acc, m, n);
        }
        for (int inner = 0; inner < blocks; inner += w_chunk) {
          const int w_blocks = std::min(w_chunk, blocks - inner), at = first + inner;
          uint16_t* second = w + int64_t(w_blocks) * kTileWords;
          int32_t largest_w = fold_strip(tile, col, std::min(n, kStrip), at, w_blocks, w);
          if (n > kStrip)
            largest_w = std::max(largest_w, fold_strip(tile, col + kStrip, n - kStrip, at, w_blocks, second));
          if (!folding_is_exact<kFormat>(largest_a, largest_w)) {
            MxTile special = part<kFormat>(tile, row, m, col, n, at, w_blocks);
            special.acc = sums;
            special.ld_acc = kPanel;
            special.clear = false;
            const int status = portable_accumulate<kFormat>(special);
            if (status != kOk) return status;
            continue;
          }
          if (inner + w_blocks < blocks) {
            prefetch_codes(tile, col, at + w_blocks, w_chunk);
          } else {
            prefetch_codes(tile, col + kPanel, first, w_chunk);
          }
          for (int r = 0; r < m; r += kAmxRows) {
            const AmxOperands x{folded.at(r, inner), w, factor + int64_t(inner) * padded + r, padded, w_blocks};
            if (m - r > kStrip) {
              amx_panel<kFormat, true>(sums + r * kPanel, kPanel, x);
            } else {
              amx_panel<kFormat, false>(sums + r * kPanel, kPanel, x);
            }
          }
        }
        copy_columns(acc, tile.ld_acc, sums, kPanel, m, n);
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
