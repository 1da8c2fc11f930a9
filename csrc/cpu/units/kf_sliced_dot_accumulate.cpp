#include "gemm/sliced_dot.h"
#include "kernelforge_cpu.h"

int32_t kf_sliced_dot_accumulate(float* acc, int64_t ld_acc, const void* x, int64_t ldx, const int32_t* w_exponent,
                                 const int8_t* w_high, const int8_t* w_middle, const int8_t* w_low, int64_t ldw,
                                 int32_t m, int32_t n, int32_t k, int32_t wide, int32_t slices, int32_t ranks) {
  const kf::SlicedDot g{acc, ld_acc, x, ldx, w_exponent, {w_high, w_middle, w_low}, ldw, m, n, k};
  return kf::sliced_dot_accumulate(kf::current_isa(), g, wide != 0, slices, ranks);
}
