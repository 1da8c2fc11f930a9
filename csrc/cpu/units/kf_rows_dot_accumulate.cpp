#include "gemm/rows_dot.h"
#include "kernelforge_cpu.h"

namespace {

template <class T>
int32_t rows_dot(float* acc, int64_t ld_acc, const uint16_t* a, int64_t lda, const void* b, int64_t ldb, int32_t m,
                 int32_t n, int32_t k, int32_t chunk) {
  const kf::RowsDot<T> g{acc, ld_acc, a, lda, static_cast<const T*>(b), ldb, m, n, k, chunk};
  return kf::rows_dot_accumulate(kf::current_isa(), g);
}

}  // namespace

int32_t kf_rows_dot_accumulate(float* acc, int64_t ld_acc, const uint16_t* a, int64_t lda, const void* b, int64_t ldb,
                               int32_t m, int32_t n, int32_t k, int32_t chunk, int32_t wide) {
  return (wide ? rows_dot<float> : rows_dot<uint16_t>)(acc, ld_acc, a, lda, b, ldb, m, n, k, chunk);
}
