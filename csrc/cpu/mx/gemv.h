// A few rows of A (decoding one or some tokens): bound by reading the packed codes, so nothing is unpacked to
// memory. Sixteen columns lie side by side in a register, block after block, which keeps the contract's order.
#pragma once

#include "mx/vnni.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

constexpr int kGemvRows = 4;

// Largest factor's bits in `blocks` scales of each of the strip's rows.
KF_INLINE int32_t largest_scale(const StripRows& rows, int blocks) {
  const __m512i nan = _mm512_set1_epi8(-1);
  __m512i largest = _mm512_setzero_si512();
  for (int b = 0; b < blocks; b += 64) {
    const __mmask64 inside = blocks - b >= 64 ? ~0ull : (1ull << (blocks - b)) - 1;
    for (int c = 0; c < kStrip; ++c) {
      const __m512i bytes = _mm512_maskz_loadu_epi8(inside, rows.scales[c] + b);
      largest = _mm512_mask_max_epu8(largest, _mm512_cmpneq_epu8_mask(bytes, nan), largest, bytes);
    }
  }
  return kf_i(read_scale(uint8_t(largest_u8(largest))));
}

// acc lanes in `inside` += kRows x one strip; `clear`: from zero. `ahead`: bytes from a strip's codes to the next
// one's, 0 for the last.
template <int kFormat, int kRows>
void gemv_strip(const StripRows& rows, const SlicedRows& a, int blocks, int64_t ahead, __mmask16 inside, float* acc,
                int64_t ld_acc, bool clear) {
  constexpr int kPrefetch = 512;
  const int row_bytes = blocks * (kBlock / 2), lda = blocks * kBlock;
  StripScales scales(rows, blocks);
  __m512 sums[kRows];
  const __mmask16 kept = clear ? __mmask16(0) : inside;
  for (int r = 0; r < kRows; ++r) sums[r] = _mm512_maskz_loadu_ps(kept, acc + r * ld_acc);
  for (int b = 0; b < blocks; ++b) {
    if (b % 4 == 0) {
      const int next = b * (kBlock / 2) + kPrefetch;
      const int64_t at = next < row_bytes ? next : ahead + (next - row_bytes);
      for (int c = 0; c < kStrip; ++c) _mm_prefetch(reinterpret_cast<const char*>(rows.codes[c] + at), _MM_HINT_T0);
    }
    __m512i codes[8];
    unpack_strip_block(rows, b, codes);
    const __m512 fw = read_scales(scales.bytes(b));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = int64_t(r) * lda + b * kBlock;
      __m512i lo = _mm512_set1_epi32(a.bias[r * a.blocks + b]), hi = _mm512_setzero_si512(), odd = hi, hi_odd = hi;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        lo = _mm512_dpbusd_epi32(lo, codes[j], four_codes(a.lo + at + 4 * j));
        odd = _mm512_dpbusd_epi32(odd, codes[4 + j], four_codes(a.lo + at + 16 + 4 * j));
        if (two_slices<kFormat>) {
          hi = _mm512_dpbusd_epi32(hi, codes[j], four_codes(a.hi + at + 4 * j));
          hi_odd = _mm512_dpbusd_epi32(hi_odd, codes[4 + j], four_codes(a.hi + at + 16 + 4 * j));
        }
      }
      __m512i integer = _mm512_add_epi32(lo, odd);
      if (two_slices<kFormat>) {
        integer = _mm512_add_epi32(integer, _mm512_slli_epi32(_mm512_add_epi32(hi, hi_odd), 8));
      }
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(a.factor[r * a.blocks + b]), fw);
      sums[r] = add_term<kFormat>(sums[r], integer, scale);
    }
  }
  for (int r = 0; r < kRows; ++r) _mm512_mask_storeu_ps(acc + r * ld_acc, inside, sums[r]);
}

// Requires m <= kGemvRows.
template <int kFormat>
int gemv_accumulate(const MxTile& tile) {
  constexpr int kChunk = 1024;
  const int chunk = std::min(tile.blocks(), kChunk);
  const size_t cells = size_t(tile.m) * chunk;
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(cells * (2 * kBlock + sizeof(int32_t) + sizeof(float)) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  SlicedRows rows;
  rows.lo = scratch.take<int8_t>(cells * kBlock);
  rows.hi = scratch.take<int8_t>(cells * kBlock);
  rows.bias = scratch.take<int32_t>(cells);
  rows.factor = scratch.take<float>(cells);
  for (int first = 0; first < tile.blocks(); first += chunk) {
    const int blocks = std::min(chunk, tile.blocks() - first);
    rows.blocks = blocks;
    const bool clear = tile.clear && first == 0;
    const int32_t largest_a = VnniEngine::slice<kFormat>(tile, 0, tile.m, first, blocks, rows);
    for (int col = 0; col < tile.n; col += kStrip) {
      const int n = std::min(kStrip, tile.n - col);
      const StripRows strip(tile, col, n, first);
      if (may_fuse<kFormat> && !fused_is_exact(largest_a, largest_scale(strip, blocks))) {
        const int status = portable_accumulate<kFormat>(part<kFormat>(tile, 0, tile.m, col, n, first, blocks));
        if (status != kOk) return status;
        continue;
      }
      const __mmask16 inside = __mmask16((1u << n) - 1);
      const int64_t ahead = col + kStrip < tile.n ? kStrip * tile.ldw : 0;
      float* acc = tile.acc + col;
      switch (tile.m) {
        case 1:
          gemv_strip<kFormat, 1>(strip, rows, blocks, ahead, inside, acc, tile.ld_acc, clear);
          break;
        case 2:
          gemv_strip<kFormat, 2>(strip, rows, blocks, ahead, inside, acc, tile.ld_acc, clear);
          break;
        case 3:
          gemv_strip<kFormat, 3>(strip, rows, blocks, ahead, inside, acc, tile.ld_acc, clear);
          break;
        default:
          gemv_strip<kFormat, 4>(strip, rows, blocks, ahead, inside, acc, tile.ld_acc, clear);
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
