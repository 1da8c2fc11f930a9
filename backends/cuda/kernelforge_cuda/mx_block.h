// MX block accumulation (contract C3) by a block of threads, taken whole: bfloat16 tensor cores on operands that carry
// their scales. passes/mx_blocks.py calls it, and lays out the tiles and the running sums as it expects them.
//
// A block's elements share one scale on each side, a power of two. Multiplied into the bfloat16 operands it leaves
// every product, and every partial sum, a multiple of one unit and below 2^24 units: the matrix unit's sum is exact,
// and is the block's term itself. One addition per output is left. Scales at which a product could overflow, infinities
// and NaN stay outside of the operands ("beside") and are multiplied in afterwards; a step that has none leaves that
// out.
#pragma once

#include <cstdint>

#define KF_INLINE __forceinline__ __device__

namespace kf {

enum MxFormat { kE2m1 = 0, kE4m3 = 1, kBf16 = 3 };

constexpr uint32_t kSigns = 0x80008000u, kAll = 0xFFFFFFFFu;

KF_INLINE uint32_t bf16x2_mul(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// fl(fl(x + c) - c)
KF_INLINE uint32_t bf16x2_round(uint32_t x, uint32_t c) {
  uint32_t sum, rounded;
  asm("add.rn.bf16x2 %0, %1, %2;" : "=r"(sum) : "r"(x), "r"(c));
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(rounded) : "r"(sum), "r"(c));
  return rounded;
}

// Bytes by PTX's selector, whose values from 8 on ask for copies of a byte's sign (PTX ISA, "prmt").
KF_INLINE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
  return bytes;
}

KF_INLINE uint32_t twice(uint32_t half) { return half * 0x10001u; }

// c += a @ b, m16n8k16 (PTX ISA, "mma").
KF_INLINE void mma_bf16(float* c, uint4 a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Activations are multiplied by 2^kShift and weights divided by it, so that both have room.
constexpr int kShift = 20;

// A scale as the contract reads it, as the factor inside the operand and the one beside it. The factor is the scale
// times 2^raise.
struct Factor {
  uint32_t inside;  // bfloat16, twice
  float beside;
};

KF_INLINE Factor read_scale(int byte, int raise) {
  const bool fits = byte <= min(190, 254 - raise);
  const int inside = byte < 77 ? 0 : ((fits ? byte : 127) + raise) << 7;
  const int special = byte == 255 ? 0x7FC00000 : 0x7F800000;
  return {twice(inside), __int_as_float(fits ? 127 << 23 : byte > 190 ? special : byte << 23)};
}

constexpr uint32_t kTwo120 = (120 + 127) << 7, kTwo126 = (126 + 127) << 7;

// Eight E2M1 codes as bfloat16 pairs (0, 4), (1, 5), (2, 6), (3, 7), times factor / 2^126: a code's bits where a
// bfloat16 has them are a number 2^126 times too small.
KF_INLINE void decode_e2m1(uint32_t codes, uint32_t factor, uint32_t* pairs) {
  constexpr uint32_t kMagnitudes = 0x01C001C0u;
  pairs[0] = bf16x2_mul(((codes << 12) & kSigns) | ((codes << 6) & kMagnitudes), factor);
  pairs[1] = bf16x2_mul(((codes << 8) & kSigns) | ((codes << 2) & kMagnitudes), factor);
  pairs[2] = bf16x2_mul(((codes << 4) & kSigns) | ((codes >> 2) & kMagnitudes), factor);
  pairs[3] = bf16x2_mul((codes & kSigns) | ((codes >> 6) & kMagnitudes), factor);
}

// The bits that a quarter of a block found, of all its four.
KF_INLINE uint32_t any_of_block(uint32_t bits) {
  bits |= __shfl_xor_sync(kAll, bits, 1);
  return bits | __shfl_xor_sync(kAll, bits, 2);
}

KF_INLINE uint32_t largest_of_block(uint32_t value) {
  value = max(value, __shfl_xor_sync(kAll, value, 1));
  return max(value, __shfl_xor_sync(kAll, value, 2));
}

// Eight of a block's E4M3 codes, cut to the block's window (contract C4), times factor. Windows round only where
// the block's largest magnitude is 64 or more. Returns whether the block has a NaN.
KF_INLINE bool decode_e4m3(uint2 codes, uint32_t factor, uint32_t* pairs) {
  constexpr uint32_t kTops = 0x80808080u;
  const uint32_t low = codes.x & ~kTops, high = codes.y & ~kTops;
  auto reaches = [&](uint32_t code) {
    const uint32_t rest = (128 - code) * 0x01010101u;
    return ((low + rest) | (high + rest)) & kTops;
  };
  const uint32_t found =
      any_of_block(reaches(0x68) | (reaches(0x70) >> 1) | (reaches(0x78) >> 2) | (reaches(0x7F) >> 3));
  const bool nan = found & (kTops >> 3);
  // binades above 2^6 that the largest magnitude reaches: 0 (nothing is rounded) to 3
  const uint32_t steps = (found & kTops ? 1 : 0) + (found & (kTops >> 1) ? 1 : 0) + (found & (kTops >> 2) ? 1 : 0);
  const uint32_t small = steps ? (steps + 1) << 3 : 0;  // codes from here on are multiples of the window's unit
  const uint32_t above_low = (low | kTops) - small * 0x01010101u, above_high = (high | kTops) - small * 0x01010101u;
  // 128 units: sums with it are rounded to whole units
  const uint32_t rounder = twice((steps + 5) << 7);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t both = prmt(codes.x, codes.y, (i << 4) | ((4 + i) << 12));
    const uint32_t value = (both & kSigns) | ((both >> 4) & 0x07F007F0u);
    const uint32_t rounded = bf16x2_round(value, rounder | (value & kSigns));
    const uint32_t keep = prmt(above_low, above_high, (8 + i) * 0x11 | (12 + i) * 0x1100);
    const uint32_t cut = bf16x2_mul((value & keep) | (rounded & ~keep), twice(kTwo120));
    pairs[i] = bf16x2_mul(cut, nan ? 0 : factor);
  }
  return nan;
}

// Eight of a block's bfloat16 numbers, cut to the block's window, times 2^raise; returns the factor beside them.
KF_INLINE float decode_bf16(uint4 numbers, int raise, uint32_t* pairs) {
  const uint32_t words[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) amax = max(amax, max(words[i] & 0x7FFFu, (words[i] >> 16) & 0x7FFFu));
  amax = largest_of_block(amax);
  const bool unusable = amax >= 0x7F80u;
  const int binade = amax < 0x2680u ? 0 : (amax + 1) >> 7;  // the window's exponent + 126
  const bool infinite = binade > 79 + 126;
  // 128 units, 2^(exponent - 8): numbers from here on are whole units, sums with it are rounded to whole units
  const uint32_t rounder = twice(max(binade - 7, 0) << 7);
  const uint32_t zero_below = twice(0x2680u);
  const uint32_t factor = twice(((infinite ? 127 - 30 : 127) + raise) << 7);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t value = prmt(words[i >> 1], words[2 + (i >> 1)], i & 1 ? 0x7632 : 0x5410);
    const uint32_t magnitude = value | kSigns;
    const uint32_t seen = unusable ? 0 : prmt(magnitude - zero_below, 0, 0xBB99);
    const uint32_t keep = prmt(magnitude - rounder, 0, 0xBB99);
    const uint32_t rounded = bf16x2_round(value & seen, rounder | (value & kSigns));
    pairs[i] = bf16x2_mul(((value & keep) | (rounded & ~keep)) & seen, factor);
  }
  return __int_as_float(unusable ? 0x7FC00000 : infinite ? 0x7F800000 : 127 << 23);
}

// The work of one block of threads on tiles of kRows x kDepth and kColumns x kDepth elements. Warps take kWarpRows rows
// and as many columns as are left to each.
template <MxFormat format, int kRows, int kColumns, int kDepth, int kThreads>
struct MxBlocks {
  static constexpr int kBlocks = kDepth / 32, kWarps = kThreads / 32;
  static constexpr int kWarpRows = kRows < 64 ? kRows : 64, kWarpsDown = kRows / kWarpRows;
  static constexpr int kWarpColumns = kColumns / (kWarps / kWarpsDown);
  static constexpr int kRowTiles = kWarpRows / 16, kColumnTiles = kWarpColumns / 8;
  // Small tiles take several blocks at a time: their products do not depend on each other, only the sums do.
  static constexpr int kUnrolled = 8 / (kRowTiles * kColumnTiles) > 1 ? 8 / (kRowTiles * kColumnTiles) : 1;

  // Memory that the threads share: activations as bfloat16, in the order in which lanes take them, and the factors of
  // both sides.
  struct Scratch {
    uint4 a[kBlocks * kRows * 4];
    uint32_t w_inside[kBlocks * kColumns];
    float w_beside[kBlocks * kColumns];
    float a_beside[kBlocks * kRows];
    int beside[kWarps];
  };

  // Where a lane finds its part of 16 rows and 32 columns for the first product; that for the second is a warp further.
  // Odd blocks have neighbouring rows swapped, as threads that store two blocks of a row would meet in the same banks.
  static KF_INLINE int place(int block, int row_tile, int lane) {
    return (block * (kRows / 16) + row_tile) * 64 + (lane ^ ((block & 1) << 2));
  }

  // Sixteen-byte chunks of a row of packed weights are swapped so that eight rows' are in different banks.
  static KF_INLINE int weight_chunk(int column, int block) {
    if constexpr (kBlocks % 8 == 0) return block ^ (column & 7);
    if constexpr (kBlocks % 4 == 0) return block ^ ((column >> 1) & 3);
    return block;
  }

  // A quarter of a row's block as bfloat16, with its scale; returns the factor beside it. Warps whose rows are all
  // zero, those beyond the matrix for instance, have less to do.
  static KF_INLINE float decode(const void* a, const uint8_t* a_scale, int block, int quarter, uint32_t* pairs) {
    float beside = 1.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs[j] = 0;
    if constexpr (format == kBf16) {
      const uint4 numbers = static_cast<const uint4*>(a)[block * 4 + quarter];
      if (__any_sync(kAll, numbers.x | numbers.y | numbers.z | numbers.w)) beside = decode_bf16(numbers, kShift, pairs);
    } else {
      const Factor read = read_scale(a_scale[block], kShift);
      beside = read.beside;
      if constexpr (format == kE2m1) {
        const uint32_t codes = static_cast<const uint32_t*>(a)[block * 4 + quarter];
        if (__any_sync(kAll, codes)) {
          decode_e2m1(codes, twice(kTwo126), pairs);
#pragma unroll
          for (int j = 0; j < 4; ++j) pairs[j] = bf16x2_mul(pairs[j], read.inside);
        }
      } else {
        const uint2 codes = static_cast<const uint2*>(a)[block * 4 + quarter];
        if (__any_sync(kAll, codes.x | codes.y) && decode_e4m3(codes, read.inside, pairs)) {
          beside = __int_as_float(0x7FC00000);
        }
      }
    }
    return beside;
  }

  // Fills the scratch memory; returns whether this thread met a factor that stays beside the operands.
  static KF_INLINE bool prepare(Scratch& scratch, const void* a, const uint8_t* a_scale, const uint8_t* w_scale) {
    const int thread = threadIdx.x, quarter = thread & 3;
    bool beside = false;
    for (int i = thread >> 2; i < kRows / 2 * kBlocks; i += kThreads / 4) {
      const int block = i % kBlocks, tile = i / kBlocks / 8, group = i / kBlocks % 8, row = tile * 16 + group;
      uint32_t upper[4], lower[4];
      const float above = decode(a, a_scale, row * kBlocks + block, quarter, upper);
      const float below = decode(a, a_scale, (row + 8) * kBlocks + block, quarter, lower);
      uint4* part = &scratch.a[place(block, tile, group * 4 + quarter)];
      part[0] = make_uint4(upper[0], lower[0], upper[1], lower[1]);
      part[32] = make_uint4(upper[2], lower[2], upper[3], lower[3]);
      if (quarter == 0) {
        scratch.a_beside[block * kRows + row] = above;
        scratch.a_beside[block * kRows + row + 8] = below;
      }
      beside |= above != 1.0f || below != 1.0f;
    }
    for (int i = thread; i < kColumns * kBlocks; i += kThreads) {
      const int column = i % kColumns, block = i / kColumns;
      const Factor read = read_scale(w_scale[column * kBlocks + block], 126 - kShift);
      scratch.w_inside[i] = read.inside;
      scratch.w_beside[i] = read.beside;
      beside |= read.beside != 1.0f;
    }
    return beside;
  }

  template <bool beside>
  static KF_INLINE void accumulate(float* acc, const Scratch& scratch, const uint32_t* w) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int group = lane >> 2, quarter = lane & 3;
    const int first_row = (warp % kWarpsDown) * kWarpRows, first_column = (warp / kWarpsDown) * kWarpColumns;
#pragma unroll(kUnrolled)
    for (int block = 0; block < kBlocks; ++block) {
      uint4 first[kRowTiles], second[kRowTiles];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        const uint4* part = &scratch.a[place(block, first_row / 16 + i, lane)];
        first[i] = part[0];
        second[i] = part[32];
      }
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        const int column = first_column + j * 8 + group;
        uint32_t weights[4];
        decode_e2m1(w[(column * kBlocks + weight_chunk(column, block)) * 4 + quarter],
                    scratch.w_inside[block * kColumns + column], weights);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          float dot[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          mma_bf16(dot, first[i], weights[0], weights[1]);
          mma_bf16(dot, second[i], weights[2], weights[3]);
          const float* rows = scratch.a_beside + block * kRows + first_row + i * 16 + group;
          const float* columns = scratch.w_beside + block * kColumns + first_column + j * 8 + quarter * 2;
          float* sums = acc + (i * kColumnTiles + j) * 4;
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if constexpr (beside) dot[e] = __fmul_rn(dot[e], __fmul_rn(rows[(e >> 1) * 8], columns[e & 1]));
            sums[e] = sums[e] + dot[e];
          }
        }
      }
    }
  }
};

// acc[i, j] += term(i, j, b) for the blocks b of the tiles, ascending.
template <int format, int kRows, int kColumns, int kDepth, int kThreads>
KF_INLINE void mx_block_accumulate(float* acc, const void* a, const void* a_scale, const void* w, const void* w_scale,
                                   void* memory) {
  using Work = MxBlocks<static_cast<MxFormat>(format), kRows, kColumns, kDepth, kThreads>;
  auto& scratch = *static_cast<typename Work::Scratch*>(memory);
  __syncthreads();
  const bool beside = __any_sync(
      kAll, Work::prepare(scratch, a, static_cast<const uint8_t*>(a_scale), static_cast<const uint8_t*>(w_scale)));
  if ((threadIdx.x & 31) == 0) scratch.beside[threadIdx.x >> 5] = beside;
  __syncthreads();
  int any = 0;
#pragma unroll
  for (int warp = 0; warp < Work::kWarps; ++warp) any |= scratch.beside[warp];
  if (any) {
    Work::template accumulate<true>(acc, scratch, static_cast<const uint32_t*>(w));
  } else {
    Work::template accumulate<false>(acc, scratch, static_cast<const uint32_t*>(w));
  }
}

}  // namespace kf
