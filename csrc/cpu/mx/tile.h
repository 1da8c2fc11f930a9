// One (m, n, k) tile of an MX product and the contract's reading of its operands, in plain C++.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/isa.h"
#include "core/scalar.h"

namespace kf {
namespace {

constexpr int kBlock = 32;  // elements under one E8M0 scale
constexpr int kStrip = 16;  // columns the engines keep side by side

enum AFormat : int { kE2m1 = 0, kE4m3E8m0 = 1, kE4m3F32 = 2, kBf16 = 3 };
constexpr int kBlocksPerF32Scale = 4;

constexpr float kWindowMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, nearest even
constexpr int32_t kWindowMagicBits = 0x4B400000;
constexpr int32_t kNanBits = 0x7FC00000;
constexpr int32_t kInfBits = 0x7F800000;

// Above this, an exact term may leave fp32's range: then a fused multiply-add and the product rounded on its
// own differ, and so may folded scales. Such tiles go to the portable engine.
constexpr float kLargestFusedScale = 0x1p103f;

inline float power_of_two(int exponent) { return kf_f((exponent + 127) << 23); }

inline float read_scale(uint8_t byte) {
  if (byte == 0xFF) return kf_f(kNanBits);
  if (byte < 127 - 50) return 0.0f;
  if (byte > 127 + 63) return kf_f(kInfBits);
  return kf_f(int32_t(byte) << 23);
}

constexpr int8_t kTwiceE2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// acc[m,n] += sum over the blocks of k, ascending; `clear`: from zero, without reading acc. See kernelforge_cpu.h.
struct MxTile {
  float* acc;
  int64_t ld_acc;
  const void* a;
  int64_t lda;
  const void* a_scale;
  int64_t ld_a_scale;
  const uint8_t* w;
  int64_t ldw;
  const uint8_t* w_scale;
  int64_t ld_w_scale;
  int m, n, k;
  bool clear = false;

  int blocks() const { return k / kBlock; }
  const uint8_t* w_row(int col) const { return w + col * ldw; }
  const uint8_t* w_scale_row(int col) const { return w_scale + col * ld_w_scale; }
};

inline void clear_sums(float* acc, int64_t ld_acc, int m, int n) {
  for (int r = 0; r < m; ++r) std::memset(acc + r * ld_acc, 0, n * sizeof(float));
}

constexpr int bytes_per_block(int format) { return format == kE2m1 ? 16 : format == kBf16 ? 64 : 32; }

template <int kFormat>
KF_INLINE const uint8_t* a_block(const MxTile& t, int row, int block) {
  const int64_t element = kFormat == kBf16 ? 2 : 1;
  return static_cast<const uint8_t*>(t.a) + row * t.lda * element + int64_t(block) * bytes_per_block(kFormat);
}

// The part of `t` with rows [row, row+m), columns [col, col+n), blocks [block, block+blocks).
template <int kFormat>
inline MxTile part(const MxTile& t, int row, int m, int col, int n, int block, int blocks) {
  MxTile p = t;
  p.acc += row * t.ld_acc + col;
  p.a = a_block<kFormat>(t, row, block);
  const int64_t scale = row * t.ld_a_scale + (kFormat == kE4m3F32 ? block / kBlocksPerF32Scale : block);
  if (kFormat == kE2m1 || kFormat == kE4m3E8m0) p.a_scale = static_cast<const uint8_t*>(t.a_scale) + scale;
  if (kFormat == kE4m3F32) p.a_scale = static_cast<const float*>(t.a_scale) + scale;
  p.w = t.w_row(col) + int64_t(block) * (kBlock / 2);
  p.w_scale = t.w_scale_row(col) + block;
  p.m = m;
  p.n = n;
  p.k = blocks * kBlock;
  p.clear = t.clear && block == 0;
  return p;
}

// Window exponent e: the least with RNE(amax * 2^(15-e)) <= 32639. `amax_bits`: fp32 bits of a finite amax.
KF_INLINE int window_exponent(int32_t amax_bits) {
  constexpr int32_t kMantissaLimit = 8322816;  // (32639.5 / 2^14 - 1) * 2^23; a tie rounds up, to even
  if (amax_bits == 0) return 0;
  return (amax_bits >> 23) - 126 + ((amax_bits & 0x7FFFFF) >= kMantissaLimit ? 1 : 0);
}

// The factor of a block whose window has exponent e; `scale` points to its stored scale (none for bf16).
template <int kFormat>
KF_INLINE float window_factor(int exponent, const void* scale_row, int block) {
  if (kFormat == kE4m3E8m0) {
    return power_of_two(exponent - 16) * read_scale(static_cast<const uint8_t*>(scale_row)[block]);
  }
  if (kFormat == kBf16) return exponent - 16 > 63 ? kf_f(kInfBits) : power_of_two(exponent - 16);
  const float scale = static_cast<const float*>(scale_row)[block / kBlocksPerF32Scale];
  const int32_t magnitude = kf_i(scale) & 0x7FFFFFFF;
  if (magnitude > kInfBits) return kf_f(kNanBits);
  if (magnitude < (127 - 50) << 23) return 0.0f;
  const float factor = scale * power_of_two(exponent - 16);
  const int32_t factor_bits = kf_i(factor), factor_magnitude = factor_bits & 0x7FFFFFFF;
  if (factor_magnitude < (127 - 50) << 23) return 0.0f;
  if (factor_magnitude > (127 + 63) << 23) return kf_f((factor_bits & INT32_MIN) | kInfBits);
  return factor;
}

template <int kFormat>
KF_INLINE const void* a_scale_row(const MxTile& t, int row) {
  if (kFormat == kBf16) return nullptr;
  if (kFormat == kE4m3F32) return static_cast<const float*>(t.a_scale) + row * t.ld_a_scale;
  return static_cast<const uint8_t*>(t.a_scale) + row * t.ld_a_scale;
}

// q[32] of one block as integer-valued floats, natural order; returns the factor.
template <int kFormat>
KF_INLINE float read_block(const MxTile& t, int row, int block, float* q) {
  const uint8_t* stored = a_block<kFormat>(t, row, block);
  const void* scales = a_scale_row<kFormat>(t, row);
  if (kFormat == kE2m1) {
    for (int i = 0; i < kBlock / 2; ++i) {
      q[2 * i] = kTwiceE2m1[stored[i] & 15];
      q[2 * i + 1] = kTwiceE2m1[stored[i] >> 4];
    }
    return 0.25f * read_scale(static_cast<const uint8_t*>(scales)[block]);
  }
  int32_t bits[kBlock], amax = 0, not_finite = 0;
  if (kFormat == kBf16) {
    for (int i = 0; i < kBlock; ++i) {
      uint16_t code;
      std::memcpy(&code, stored + 2 * i, 2);
      const int32_t wide = int32_t(uint32_t(code) << 16), magnitude = wide & 0x7FFFFFFF;
      bits[i] = magnitude < (127 - 50) << 23 ? 0 : wide;
      not_finite |= magnitude >= kInfBits;
    }
  } else {
    for (int i = 0; i < kBlock; ++i) {
      const int32_t code = stored[i], magnitude = code & 0x7F;
      const int32_t normal = (magnitude << 20) + (120 << 23);
      const int32_t subnormal = kf_i(float(magnitude) * 0x1p-9f);
      bits[i] = (magnitude < 8 ? subnormal : normal) | int32_t(uint32_t(code & 0x80) << 24);
      not_finite |= magnitude == 0x7F;
    }
  }
  for (int i = 0; i < kBlock; ++i) {
    const int32_t magnitude = bits[i] & 0x7FFFFFFF;
    amax = magnitude > amax ? magnitude : amax;
  }
  if (not_finite) {
    for (int i = 0; i < kBlock; ++i) q[i] = 0.0f;
    return kf_f(kNanBits);
  }
  const int exponent = window_exponent(amax);
  const float scale = power_of_two(15 - exponent);
  for (int i = 0; i < kBlock; ++i) q[i] = float(kf_i(kf_f(bits[i]) * scale + kWindowMagic) - kWindowMagicBits);
  return window_factor<kFormat>(exponent, scales, block);
}

// Largest factor, NaN apart (a NaN factor makes NaN of every term on any path).
struct LargestFactor {
  int32_t bits = 0;
  KF_INLINE void add(float factor) {
    const int32_t magnitude = kf_i(factor) & 0x7FFFFFFF;
    if (magnitude <= kInfBits && magnitude > bits) bits = magnitude;
  }
};

// True where acc + I * (fa * fw) may be one fused operation, or may have its scales folded into the operands.
KF_INLINE bool fused_is_exact(int32_t largest_a_bits, int32_t largest_w_bits) {
  if (largest_a_bits >= kInfBits || largest_w_bits >= kInfBits) return false;
  return kf_f(largest_a_bits) * kf_f(largest_w_bits) <= kLargestFusedScale;
}

// Row pointers of one strip of W; columns past `n` repeat the last one and are discarded by the caller.
struct StripRows {
  const uint8_t* codes[kStrip];
  const uint8_t* scales[kStrip];
  KF_INLINE StripRows(const MxTile& tile, int col, int n, int first) {
    for (int c = 0; c < kStrip; ++c) {
      const int source = col + (c < n ? c : n - 1);
      codes[c] = tile.w_row(source) + int64_t(first) * (kBlock / 2);
      scales[c] = tile.w_scale_row(source) + first;
    }
  }
};

}  // namespace
}  // namespace kf
