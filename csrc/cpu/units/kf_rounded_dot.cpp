#include "attention/native_bf16.h"
#include "kernelforge_cpu.h"

namespace kf {
namespace {

// out[m][n] = a[m][k] times b[n][k], products added in ascending k.
int rounded_dot_by_loops(float* out, const uint16_t* a, const uint16_t* b, int m, int n, int k) {
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(size_t(4) * n * k + 64)) return kOutOfMemory;
  float* columns = scratch.take<float>(size_t(n) * k);
  const auto value = [](uint16_t bits) { return kf_f(int32_t(uint32_t(bits) << 16)); };
  for (int j = 0; j < n; ++j) {
    for (int x = 0; x < k; ++x) columns[int64_t(x) * n + j] = value(b[int64_t(j) * k + x]);
  }
  for (int i = 0; i < m; ++i) {
    float* row = out + int64_t(i) * n;
    std::fill(row, row + n, 0.0f);
    for (int x = 0; x < k; ++x) {
      const float factor = value(a[int64_t(i) * k + x]);
      for (int j = 0; j < n; ++j) row[j] += factor * columns[int64_t(x) * n + j];
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prefer-vector-width=512")
namespace kf {
namespace {

// The same by bfloat16 dots, 8 x 32 at a time; k is a multiple of 2, n of 16.
int rounded_dot_by_bf16(float* out, const uint16_t* a, const uint16_t* b, int m, int n, int k) {
  const int columns = (n + 31) / 32 * 32;
  const int64_t strip = int64_t(k) * 32;  // bytes of 16 columns
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve(size_t(2) * columns * k + 64)) return kOutOfMemory;
  int8_t* packed = scratch.take<int8_t>(size_t(2) * columns * k);
  for (int j = 0; j < n; j += 16) {
    pack_keys(reinterpret_cast<const int8_t*>(b + int64_t(j) * k), 2 * k, packed + j / 16 * strip);
  }
  if (n < columns) std::memset(packed + n / 16 * strip, 0, strip);
  for (int i = 0; i < m; i += kBf16Rows) {
    const uint16_t* rows[kBf16Rows];
    for (int r = 0; r < kBf16Rows; ++r) rows[r] = a + int64_t(std::min(i + r, m - 1)) * k;
    for (int j = 0; j < n; j += 32) {
      __m512 total[kBf16Rows][2];
      bf16_tile(rows, 2, packed + j / 16 * strip, strip, k / 2, total);
      for (int r = 0; r < kBf16Rows && i + r < m; ++r) {
        float* to = out + int64_t(i + r) * n + j;
        _mm512_storeu_ps(to, total[r][0]);
        if (j + 16 < n) _mm512_storeu_ps(to + 16, total[r][1]);
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif

int32_t kf_rounded_dot(float* out, const uint16_t* a, const uint16_t* b, int32_t m, int32_t n, int32_t k) {
  if (m < 0 || n < 0 || k < 0) return kf::kBadArgument;
#if defined(KF_X86)
  if (n % 16 == 0 && k % 2 == 0 && kf::current_isa() >= kf::Isa::kAvx512Bf16 &&
      kf::isa_available(kf::Isa::kAvx512Bf16)) {
    return kf::rounded_dot_by_bf16(out, a, b, m, n, k);
  }
#endif
  return kf::rounded_dot_by_loops(out, a, b, m, n, k);
}
