// acc += the dots of bfloat16 rows with rows of T, chunk by chunk, both cut here (contract C4): bfloat16 into two
// slices, float32 into three.
#pragma once

#include "gemm/sliced_dot.h"

namespace kf {
namespace {

template <class T>
struct RowsDot {
  float* acc;  // [m][n]
  int64_t ld_acc;
  const uint16_t* a;  // [m][k]
  int64_t lda;
  const T* b;  // [n][k]
  int64_t ldb;
  int m, n, k;
  int chunk;  // elements of one dot, the last may have fewer
};

constexpr int kLongestChunk = 512;

template <class T>
constexpr int kSlicesOf = sizeof(T) == sizeof(float) ? 3 : 2;
template <class T>
using CutOfRows = Cut<uint16_t, 2, kSlicesOf<T> + 1, kSlicesOf<T>>;

template <class T>
int rows_dot_by_gemm(Isa isa, const RowsDot<T>& g) {
  using Weights = Cut<T, kSlicesOf<T>, kSlicesOf<T>>;
  static thread_local Scratch scratch;
  const int64_t slice = int64_t(g.n) * g.chunk;
  if (!scratch.reserve(kSlicesOf<T> * slice + g.n * sizeof(int32_t) + 2 * Scratch::kAlignment)) return kOutOfMemory;
  int8_t* slices = scratch.take<int8_t>(kSlicesOf<T> * slice);
  int32_t* exponents = scratch.take<int32_t>(g.n);
  for (int start = 0; start < g.k; start += g.chunk) {
    const int k = std::min(g.chunk, g.k - start);
    for (int j = 0; j < g.n; ++j) {
      exponents[j] = cut_row<Weights>(g.b + j * g.ldb + start, k, slices + int64_t(j) * k, slice);
    }
    const int8_t *middle = slices + slice, *low = slices + (kSlicesOf<T> - 1) * slice;
    const int status = sliced_dot_by_gemm<CutOfRows<T>>(
        isa, SlicedDot{g.acc, g.ld_acc, g.a + start, g.lda, exponents, {slices, middle, low}, k, g.m, g.n, k});
    if (status != kOk) return status;
  }
  return kOk;
}

}  // namespace
}  // namespace kf

#include "gemm/rows_dot_256.h"

namespace kf {
namespace {

template <class T>
int rows_dot_accumulate(Isa isa, const RowsDot<T>& g) {
  if (g.m < 0 || g.n < 0 || g.k < 0 || g.chunk < 1 || g.chunk > kLongestChunk) return kBadArgument;
  if (isa == Isa::kMissing) return kIsaMissing;
  if (g.m == 0 || g.n == 0) return kOk;
#if defined(KF_X86)
  if (isa >= Isa::kAvx2) return rows_dot_256(g);
#endif
  return rows_dot_by_gemm(isa, g);
}

}  // namespace
}  // namespace kf
