#include "gemm/rows_dot.h"
#include "kernelforge_cpu.h"

int32_t kf_rows_dot_accumulate(float* acc, int64_t ld_acc, const uint16_t* a, int64_t lda, const uint16_t* b,
                               int64_t ldb, int32_t m, int32_t n, int32_t k, int32_t chunk) {
  return kf::rows_dot_accumulate(kf::current_isa(), kf::RowsDot{acc, ld_acc, a, lda, b, ldb, m, n, k, chunk});
}
