// One chunk of attention over shared entries (contract C5), merged into a state: what every engine shares, and the
// portable engine. Definitions and names as in kernelforge.numerics.attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/exp2.h"
#include "core/read.h"
#include "core/scratch.h"
#include "gemm/engines.h"
#include "mx/tile.h"

namespace kf {
namespace {

constexpr int kChunk = 128;
constexpr int kLeastExponent = -49;
constexpr int kUnusable = 255;
constexpr float kWeightOne = 32512.0f;
constexpr float kLargestScore = 0x1p100f, kSmallestResult = 0x1p-100f;

struct AttentionChunk {
  float *m, *l, *o;
  int64_t ld_o;
  const int8_t *q_high, *q_low;  // [heads][width]
  const int32_t* q_exponent;
  const uint16_t* source;  // rows of `width` bfloat16
  const int32_t* rows;     // [128], negative where the chunk has no entry
  int heads, width;
  float factor;
  bool fresh;  // the state before is empty and not read

  const uint16_t* row(int j) const { return source + int64_t(rows[j]) * width; }
  // Positions in the chunk that hold an entry; exact sums do not care where.
  int visible(int* found) const {
    int n = 0;
    for (int j = 0; j < kChunk; ++j) {
      if (rows[j] >= 0) found[n++] = j;
    }
    return n;
  }
};

KF_INLINE float limit(float x) { return std::fabs(x) < kSmallestResult ? 0.0f : x; }

// 2^x for x <= 0 that is not NaN.
KF_INLINE float exp2_of_nonpositive(float x) {
  const bool below = x < -100.0f;
  const float v = below || x > -kSmallestRead ? 0.0f : x;
  const int32_t n = kf_i(v + kWindowMagic) - kWindowMagicBits;
  const float r = v - float(n);
  const int32_t bits = kf_i(exp2_of_fraction(r)) + int32_t(uint32_t(n) << 23);
  return below ? 0.0f : kf_f(bits);
}

// x * 2^places, infinite beyond the range, +0 below 2^-100; x is 0 or at least 1 in magnitude.
KF_INLINE float scaled(float x, int places) { return limit(std::ldexp(x, places)); }

KF_INLINE float clamp_score(float t) {
  t = std::min(std::max(t, -kLargestScore), kLargestScore);
  return std::fabs(t) < kSmallestRead ? 0.0f : t;
}

inline int row_exponent(const uint16_t* x, int width) {
  int amax = 0;
  for (int k = 0; k < width; ++k) amax = std::max(amax, x[k] & 0x7FFF);
  if (amax >= 0x7F80) return kUnusable;
  return amax < (77 << 7) ? kLeastExponent : window_exponent(amax << 16);
}

inline void cut_row(const uint16_t* x, int width, int exponent, int8_t* high, int8_t* low, int64_t stride) {
  const float unit = exponent == kUnusable ? 0.0f : power_of_two(15 - exponent);
  for (int k = 0; k < width; ++k) {
    const bool small = exponent == kUnusable || (x[k] & 0x7FFF) < (77 << 7);
    const float value = small ? 0.0f : kf_f(int32_t(uint32_t(x[k]) << 16));
    const int32_t q = kf_i(value * unit + kWindowMagic) - kWindowMagicBits;
    high[k * stride] = int8_t((q + 128) >> 8);
    low[k * stride] = int8_t(q);
  }
}

KF_INLINE float joined(int32_t high, int32_t cross, int32_t low) {
  return (float(high) * 65536.0f + float(cross) * 256.0f) + float(low);
}

// m and l with the chunk's; what numerators are multiplied by.
inline void merge_factors(const AttentionChunk& x, const float* chunk_m, const float* chunk_l, float* kept,
                          float* added) {
  for (int i = 0; i < x.heads; ++i) {
    if (x.fresh) {
      x.m[i] = -0x1p120f;
      x.l[i] = 0.0f;
    }
    const float top = chunk_m[i] > x.m[i] ? chunk_m[i] : x.m[i];
    kept[i] = exp2_of_nonpositive(x.m[i] - top);
    added[i] = exp2_of_nonpositive(chunk_m[i] - top);
    x.m[i] = top;
    x.l[i] = limit(x.l[i] * kept[i]) + limit(chunk_l[i] * added[i]);
  }
}

// The definition on the int8 dot of the instruction set at hand.
inline int attention_chunk_by_gemm(Isa isa, const AttentionChunk& x) {
  int at[kChunk];
  const int n = x.visible(at), heads = x.heads, width = x.width;
  if (n == 0) return kOk;
  const int64_t entry_bytes = int64_t(n) * width, tile = int64_t(heads) * std::max(kChunk, width);
  const size_t bytes = 4 * entry_bytes + 4 * heads * kChunk + 3 * tile * 4 + heads * 16 + 16 * 64;
  static thread_local Scratch scratch;  // the dot has the other one
  if (!scratch.reserve(bytes)) return kOutOfMemory;
  int8_t* high = scratch.take<int8_t>(entry_bytes);
  int8_t* low = scratch.take<int8_t>(entry_bytes);
  int8_t* p_high = scratch.take<int8_t>(heads * n);
  int8_t* p_low = scratch.take<int8_t>(heads * n);
  int32_t* hh = scratch.take<int32_t>(tile);
  int32_t* cross = scratch.take<int32_t>(tile);
  int32_t* ll = scratch.take<int32_t>(tile);
  float* chunk_m = scratch.take<float>(heads);
  float* chunk_l = scratch.take<float>(heads);
  float* kept = scratch.take<float>(heads);
  float* added = scratch.take<float>(heads);
  int exponent[kChunk], largest = kLeastExponent;
  for (int j = 0; j < n; ++j) {
    exponent[j] = row_exponent(x.row(at[j]), width);
    largest = std::max(largest, exponent[j]);
    cut_row(x.row(at[j]), width, exponent[j], high + int64_t(j) * width, low + int64_t(j) * width, 1);
  }
  const auto four = [&](const int8_t* ah, const int8_t* al, int columns, int depth, bool trans) {
    int status = gemm_s8(isa, {hh, columns, ah, depth, high, width, heads, columns, depth, trans, true});
    status |= gemm_s8(isa, {cross, columns, ah, depth, low, width, heads, columns, depth, trans, true});
    status |= gemm_s8(isa, {cross, columns, al, depth, high, width, heads, columns, depth, trans, false});
    return status | gemm_s8(isa, {ll, columns, al, depth, low, width, heads, columns, depth, trans, true});
  };
  if (const int status = four(x.q_high, x.q_low, n, width, true)) return status;
  for (int i = 0; i < heads; ++i) {
    float t[kChunk], top = -INFINITY;
    for (int j = 0; j < n; ++j) {
      const int64_t e = int64_t(i) * n + j;
      t[j] = clamp_score(scaled(joined(hh[e], cross[e], ll[e]), x.q_exponent[i] + exponent[j] - 30) * x.factor);
      top = std::max(top, t[j]);
    }
    int32_t total = 0;
    for (int j = 0; j < n; ++j) {
      const float weight = exp2_of_nonpositive(t[j] - top) * kWeightOne;
      total += kf_i(weight + kWindowMagic) - kWindowMagicBits;
      const float unit = power_of_two(std::max(exponent[j] - largest, -30));
      const int32_t p = kf_i(weight * unit + kWindowMagic) - kWindowMagicBits;
      p_high[int64_t(i) * n + j] = int8_t((p + 128) >> 8);
      p_low[int64_t(i) * n + j] = int8_t(p);
    }
    chunk_m[i] = top;
    chunk_l[i] = x.q_exponent[i] == kUnusable || largest == kUnusable ? kf_f(kNanBits) : float(total);
  }
  merge_factors(x, chunk_m, chunk_l, kept, added);
  if (const int status = four(p_high, p_low, width, n, false)) return status;
  for (int i = 0; i < heads; ++i) {
    for (int d = 0; d < width; ++d) {
      const int64_t e = int64_t(i) * width + d;
      float* o = x.o + i * x.ld_o + d;
      *o = (x.fresh ? 0.0f : limit(*o * kept[i])) +
           limit(scaled(joined(hh[e], cross[e], ll[e]), largest - 15) * added[i]);
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
