// AVX512-BF16: vdpbf16ps on folded operands. It rounds twice per pair of products, but every value is an exact
// multiple of the block's scale, below 2^24 of them, so both roundings are exact; the block's sum starts at zero and
// is added to the accumulator once.
//
// A kernel takes up to fourteen rows by a strip. W's codes are folded in registers, between the dots and once for each
// group of rows: permutations and integer additions go to units that the dots leave idle, while a folded panel in
// memory costs stores, which do not.
#pragma once

#include "mx/gemv.h"
#include "mx/staged.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prefer-vector-width=512")
namespace kf {
namespace {

constexpr int kDotRows = 14;  // rows a kernel takes, at most: as many sums and dots nearly fill the registers

// sum + the dots of w with one pair, the same for all lanes. GCC 12 would take a register for the pair.
KF_INLINE __m512 dot_pair(__m512 sum, __m512i w, const uint16_t* pair) {
  typedef const uint32_t __attribute__((may_alias, aligned(2))) Pair;
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<Pair*>(pair)));
  return sum;
}

// One block's dots of kRows x one strip from zero. a: [kRows][32]. between(i) is called for i from 0 to 15.
template <int kRows, class Between>
KF_INLINE void dot_block(const uint16_t* a, const StagedStrip& w, uint32_t block, const StagedFold& fold,
                         __m512 (&dots)[kRows], const Between& between) {
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r) dots[r] = _mm512_setzero_ps();
  const __m512i exponents = fold.exponents(w, block);
  for (int j = 0; j < 4; ++j, a += 8) {
    const __m512i codes = _mm512_load_si512(w.codes[block][j]);
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      const __m512i words = fold(_mm512_srli_epi16(codes, 4 * p), exponents);
      between(4 * j + p);
#pragma GCC unroll 14
      for (int r = 0; r < kRows; ++r) dots[r] = dot_pair(dots[r], words, a + r * kBlock + 2 * p);
    }
  }
}

// What a kernel multiplies with a strip: rows over one chunk, and where their sums go.
struct DotRows {
  float* acc;  // lanes in `inside` are added to; `clear`: from zero
  int64_t ld_acc;
  __mmask16 inside;
  bool clear;
  const uint16_t* a;    // [blocks][rows][32]
  const float* factor;  // [blocks][ld_factor], for fp32 scales alone
  int64_t ld_factor;
};

template <int kFormat, int kRows>
__attribute__((noinline)) void bf16_kernel(const DotRows& rows, const StagedStrip& w, uint32_t blocks,
                                           StripStager& stager) {
  const StagedFold fold;
  const bool staging = stager.wanted(blocks);
  CodeStager codes = stager.codes;
  CodePrefetch lines = stager.prefetch;
  const uint16_t* a = rows.a;
  __m512 sums[kRows];
#pragma GCC unroll 14
  for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_ps();
  if (!rows.clear) {
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) sums[r] = _mm512_maskz_loadu_ps(rows.inside, rows.acc + r * rows.ld_acc);
  }
  for (uint32_t b = 0; b < blocks; ++b, a += kRows * kBlock) {
    __m512 dots[kRows];
    const auto prefetch = [&](int i) KF_INLINE_LAMBDA {
      if (i % 4 == 0 && i / 4 < lines.per_block) lines.next();
    };
    if (staging) {
      codes.start_block();
      dot_block<kRows>(a, w, b, fold, dots, [&](int i) KF_INLINE_LAMBDA {
        codes.stage(i);
        prefetch(i);
      });
      codes.end_block();
    } else {
      dot_block<kRows>(a, w, b, fold, dots, prefetch);
    }
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      __m512 term = dots[r];
      if (kFormat == kE4m3F32) term = _mm512_mul_ps(term, _mm512_set1_ps(rows.factor[b * rows.ld_factor + r]));
      sums[r] = _mm512_add_ps(sums[r], term);
    }
  }
  stager.prefetch = lines;
  if (staging) {
    stager.codes = codes;
    stager.staged(blocks);
  }
  if (rows.inside == 0xFFFF) {  // a store without a mask is the faster one
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(rows.acc + r * rows.ld_acc, sums[r]);
  } else {
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) _mm512_mask_storeu_ps(rows.acc + r * rows.ld_acc, rows.inside, sums[r]);
  }
}

constexpr int dot_groups(int m) { return (m + kDotRows - 1) / kDotRows; }

// body(std::integral_constant<int, rows>, first), at least five rows.
template <int kRows, class Body>
KF_INLINE void with_dot_rows(int rows, int first, const Body& body) {
  if constexpr (kRows > kGemvRows + 1) {
    if (rows < kRows) return with_dot_rows<kRows - 1>(rows, first, body);
  }
  body(std::integral_constant<int, kRows>(), first);
}

// Calls body(std::integral_constant<int, rows>, first row) for as few groups of the m rows as there can be, of about
// the same height. Requires m > kGemvRows, so that none has fewer rows than five.
template <class Body>
KF_INLINE void for_dot_rows(int m, const Body& body) {
  for (int r = 0, rows; r < m; r += rows) {
    const int left = m - r, groups = dot_groups(left);
    rows = (left + groups - 1) / groups;
    with_dot_rows<kDotRows>(rows, r, body);
  }
}

// A as the kernels read it, [group of rows][block][row of the group][32]; factor: [blocks][m], written for fp32 scales
// alone. Returns the largest factor's bits.
template <int kFormat>
int32_t fold_dot_rows(const MxTile& tile, const Strip& strip, uint16_t* out, float* factor) {
  LargestFactor largest;
  for_dot_rows(strip.m, [&](auto group, int first) {
    constexpr int kRows = decltype(group)::value;
    for (int r = first; r < first + kRows; ++r) {
      uint16_t* to = out + (int64_t(first) * strip.blocks + r - first) * kBlock;
      for (int b = 0; b < strip.blocks; ++b, to += kRows * kBlock) {
        const float fa = fold_block<kFormat>(tile, strip.row + r, strip.first + b, to);
        largest.add(fa);
        if (kFormat == kE4m3F32) factor[int64_t(b) * strip.m + r] = fa;
      }
    }
  });
  return largest.bits;
}

// Requires m > kGemvRows.
template <int kFormat>
int bf16_accumulate(const MxTile& tile) {
  const int chunk = std::min(tile.blocks(), Strip::kBlocks);
  const size_t cells = size_t(chunk) * std::min(tile.m, Strip::kRows);
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(cells * (2 * kBlock + sizeof(float)) + 2 * StagedStrip::bytes(chunk) +
                       6 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  uint16_t* a = scratch.take<uint16_t>(cells * kBlock);
  float* factor = scratch.take<float>(cells);
  const auto take_strip = [&] {
    auto* codes = reinterpret_cast<StagedStrip::Codes*>(scratch.take<uint32_t>(chunk * 4 * kStrip));
    return StagedStrip{codes,
                       reinterpret_cast<uint8_t (*)[kStrip][4]>(scratch.take<uint32_t>((chunk + 3) / 4 * kStrip))};
  };
  StagedStrip w = take_strip(), next_w = take_strip();
  StripStager stager;
  int32_t largest_a = 0;
  Strip strip = Strip::at(tile, 0, 0, 0), next = strip.next(tile);
  stager.start(tile, strip, next, 1, w);
  while (strip.blocks > 0) {
    const int64_t blocks = strip.blocks;
    if (strip.col == 0) largest_a = fold_dot_rows<kFormat>(tile, strip, a, factor);
    const bool exact = folding_is_exact<kFormat>(largest_a, stager.finish());
    const Strip after = next.next(tile);
    stager.start(tile, next, after, dot_groups(strip.m), next_w);
    if (exact) {
      const __mmask16 inside = __mmask16((1u << strip.n) - 1);
      const bool clear = tile.clear && strip.first == 0;
      float* acc = tile.acc + strip.row * tile.ld_acc + strip.col;
      for_dot_rows(strip.m, [&](auto group, int r) {
        const DotRows rows{acc + r * tile.ld_acc,   tile.ld_acc, inside, clear,
                           a + r * blocks * kBlock, factor + r,  strip.m};
        bf16_kernel<kFormat, decltype(group)::value>(rows, w, blocks, stager);
      });
    } else {
      const int status = portable_accumulate<kFormat>(
          part<kFormat>(tile, strip.row, strip.m, strip.col, strip.n, strip.first, strip.blocks));
      if (status != kOk) return status;
    }
    strip = next;
    next = after;
    std::swap(w, next_w);
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
