// acc += the dots of bfloat16 rows with bfloat16 rows, chunk by chunk; both are cut here into two slices (contract C4).
#pragma once

#include "gemm/sliced_dot.h"

namespace kf {
namespace {

struct RowsDot {
  float* acc;  // [m][n]
  int64_t ld_acc;
  const uint16_t* a;  // [m][k]
  int64_t lda;
  const uint16_t* b;  // [n][k]
  int64_t ldb;
  int m, n, k;
  int chunk;  // elements of one dot, the last may have fewer
};

constexpr int kLongestChunk = 512;

using CutInTwo = Cut<uint16_t, 2, 3, 2>;

inline int rows_dot_by_gemm(Isa isa, const RowsDot& g) {
  static thread_local Scratch scratch;
  const int64_t slice = int64_t(g.n) * g.chunk;
  if (!scratch.reserve(2 * slice + g.n * sizeof(int32_t) + 2 * Scratch::kAlignment)) return kOutOfMemory;
  int8_t* slices = scratch.take<int8_t>(2 * slice);
  int32_t* exponents = scratch.take<int32_t>(g.n);
  for (int start = 0; start < g.k; start += g.chunk) {
    const int k = std::min(g.chunk, g.k - start);
    for (int j = 0; j < g.n; ++j) {
      exponents[j] = cut_row<CutInTwo>(g.b + j * g.ldb + start, k, slices + int64_t(j) * k, slice);
    }
    const int8_t* low = slices + slice;
    const int status = sliced_dot_by_gemm<CutInTwo>(
        isa, SlicedDot{g.acc, g.ld_acc, g.a + start, g.lda, exponents, {slices, low, low}, k, g.m, g.n, k});
    if (status != kOk) return status;
  }
  return kOk;
}

}  // namespace
}  // namespace kf

#include "gemm/rows_dot_256.h"

namespace kf {
namespace {

inline int rows_dot_accumulate(Isa isa, const RowsDot& g) {
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
