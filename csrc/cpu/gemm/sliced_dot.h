// acc += the dot of one chunk of rows with weights that were cut into three int8 slices (contract C4).
//
// Rows are cut here, into two slices or three. Slice products of equal weight are summed exactly; the sums of the
// highest weights ("ranks") are joined from the highest down and scaled, as kernelforge.numerics.window writes it.
#pragma once

#include "core/read.h"
#include "core/scalar.h"
#include "gemm/engines.h"

namespace kf {
namespace {

struct SlicedDot {
  float* acc;  // [m][n]
  int64_t ld_acc;
  const void* x;  // [m][k], uint16_t or float
  int64_t ldx;
  const int32_t* w_exponent;  // [n]
  const int8_t* w[3];         // [n][k], highest slice first
  int64_t ldw;
  int m, n, k;
};

constexpr int kWeightSlices = 3;
constexpr int kUnusable = 255;           // exponent of a row with an infinity or a NaN
constexpr int32_t kSmallestResult = 27;  // exponent field of 2^-100
constexpr int32_t kInfinity = 0x7F800000, kNotANumber = 0x7FC00000, kMagnitude = 0x7FFFFFFF;

// How rows of T are cut, and the products that are kept.
template <class T, int slices, int ranks, int weight_slices = kWeightSlices>
struct Cut {
  using Stored = T;
  static constexpr int kSlices = slices, kRanks = ranks, kWeights = weight_slices;
  // Exponent of the unit of the lowest rank.
  static constexpr int kUnit = (8 * slices - 1) + (8 * kWeights - 1) - 8 * (slices + kWeights - 1 - ranks);

  // Whether the lowest slices of both meet.
  static constexpr bool kLowest = ranks == slices + kWeights - 1;
  // Slices of the weights that a slice of rows meets.
  static constexpr int met(int slice) { return std::min(kWeights, kRanks - slice); }
};

// Exponent of a window of `slices` slices, from the float32 bits of a row's largest magnitude.
inline int32_t sliced_exponent(int32_t amax, int slices) {
  if (amax >= kInfinity) return kUnusable;
  if (amax < kSmallestReadBits) return 0;
  // Significands that would round past 127 in the high slice take one exponent more.
  return ((amax + (slices == 2 ? 0x10000 : 0x10101)) >> 23) - 126;
}

inline int32_t value_bits(uint16_t x) { return int32_t(uint32_t(x) << 16); }
inline int32_t value_bits(float x) { return kf_i(x); }

// total * 2^places, +0 below 2^-100, infinite beyond float32.
inline float sliced_scale(float total, int32_t places) {
  const int32_t bits = kf_i(total), magnitude = bits & kMagnitude, field = (magnitude >> 23) + places;
  if (magnitude == 0 || field < kSmallestResult) return 0.0f;
  return kf_f(field > 254 ? (bits ^ magnitude) | kInfinity : bits + (places << 23));
}

// One row's slices, `distance` bytes from each other.
template <class Rows>
inline int32_t cut_row(const typename Rows::Stored* x, int k, int8_t* slices, int64_t distance) {
  constexpr int kSlices = Rows::kSlices;
  int32_t amax = 0;
  for (int i = 0; i < k; ++i) amax = std::max(amax, value_bits(x[i]) & kMagnitude);
  const int32_t exponent = sliced_exponent(amax, kSlices);
  for (int i = 0; i < k; ++i) {
    const int32_t bits = value_bits(x[i]);
    int32_t q = 0;
    if ((bits & kMagnitude) >= kSmallestReadBits && exponent != kUnusable) {
      // x * 2^(8 s - 1 - e), rounded to nearest even by integers.
      const int places = exponent + 126 - ((bits & kMagnitude) >> 23) + 25 - 8 * kSlices;
      const int32_t significand = (bits & 0x7FFFFF) | 0x800000;
      if (places <= 0) {
        q = significand << -places;
      } else {
        const int shift = std::min(places, 30);
        q = (significand + (1 << (shift - 1)) - 1 + ((significand >> shift) & 1)) >> shift;
      }
      if (bits < 0) q = -q;
    }
    for (int s = kSlices - 1; s > 0; --s) {
      const int32_t low = ((q + 128) & 255) - 128;
      slices[s * distance + i] = int8_t(low);
      q = (q - low) >> 8;
    }
    slices[i] = int8_t(q);
  }
  return exponent;
}

template <class Rows>
int sliced_dot_by_gemm(Isa isa, const SlicedDot& g) {
  static thread_local Scratch scratch;
  const int rows = Rows::kSlices * g.m, columns = Rows::kWeights * g.n;
  if (!scratch.reserve(size_t(rows) * g.k + size_t(rows) * columns * sizeof(int32_t) + g.m * sizeof(int32_t) +
                       4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  int8_t* a = scratch.take<int8_t>(size_t(rows) * g.k);               // [slice][m][k]
  int32_t* products = scratch.take<int32_t>(size_t(rows) * columns);  // [slice][m][weight slice][n]
  int32_t* exponents = scratch.take<int32_t>(g.m);
  const int64_t slice = int64_t(g.m) * g.k;
  for (int i = 0; i < g.m; ++i) {
    const auto* x = static_cast<const typename Rows::Stored*>(g.x) + i * g.ldx;
    exponents[i] = cut_row<Rows>(x, g.k, a + int64_t(i) * g.k, slice);
  }
  for (int s = 0; s < Rows::kWeights; ++s) {
    const int meeting = std::min(Rows::kSlices, Rows::kRanks - s) * g.m;
    const int status =
        gemm_s8(isa, GemmS8{products + s * g.n, columns, a, g.k, g.w[s], g.ldw, meeting, g.n, g.k, true, true});
    if (status != kOk) return status;
  }
  for (int i = 0; i < g.m; ++i) {
    for (int j = 0; j < g.n; ++j) {
      float total = 0.0f;
      for (int rank = 0; rank < Rows::kRanks; ++rank) {
        int32_t sum = 0;
        for (int s = 0; s < Rows::kSlices; ++s) {
          if (rank - s < 0 || rank - s >= Rows::kWeights) continue;
          sum += products[int64_t(s * g.m + i) * columns + (rank - s) * g.n + j];
        }
        total = total + float(sum) * float(int64_t(1) << (8 * (Rows::kRanks - 1 - rank)));
      }
      const bool usable = exponents[i] != kUnusable && g.w_exponent[j] != kUnusable;
      const float term = usable ? sliced_scale(total, exponents[i] + g.w_exponent[j] - Rows::kUnit) : kf_f(kNotANumber);
      g.acc[i * g.ld_acc + j] = g.acc[i * g.ld_acc + j] + term;
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf

#include "gemm/sliced_dot_256.h"
#include "gemm/sliced_dot_512.h"

namespace kf {
namespace {

template <class Rows>
inline int sliced_dot(Isa isa, const SlicedDot& g) {
#if defined(KF_X86)
  if (isa >= Isa::kAvx512Bf16) return sliced_dot_512<Rows>(g);
  if (isa == Isa::kAvx2) return sliced_dot_256<Rows>(g);
#endif
  return sliced_dot_by_gemm<Rows>(isa, g);
}

inline int sliced_dot_accumulate(Isa isa, const SlicedDot& g, bool wide, int slices, int ranks) {
  if (g.m < 0 || g.n < 0 || g.k < 0 || g.k > 512 || g.k % 32 != 0) return kBadArgument;
  if (isa == Isa::kMissing) return kIsaMissing;
  if (g.m == 0 || g.n == 0) return kOk;
  if (slices == 2 && ranks == 4 && !wide) return sliced_dot<Cut<uint16_t, 2, 4>>(isa, g);
  if (slices == 3 && ranks == 3 && !wide) return sliced_dot<Cut<uint16_t, 3, 3>>(isa, g);
  if (slices == 3 && ranks == 3) return sliced_dot<Cut<float, 3, 3>>(isa, g);
  if (slices == 3 && ranks == 5 && wide) return sliced_dot<Cut<float, 3, 5>>(isa, g);
  return kBadArgument;
}

}  // namespace
}  // namespace kf
