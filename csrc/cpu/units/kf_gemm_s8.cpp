#include "gemm/engines.h"
#include "kernelforge_cpu.h"

int32_t kf_gemm_s8(int32_t* c, int64_t ldc, const int8_t* a, int64_t lda, const int8_t* b, int64_t ldb, int32_t m,
                   int32_t n, int32_t k, int32_t trans_b, int32_t clear) {
  return kf::gemm_s8(kf::current_isa(), kf::GemmS8{c, ldc, a, lda, b, ldb, m, n, k, trans_b != 0, clear != 0});
}
