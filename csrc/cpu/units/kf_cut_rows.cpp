#include "attention/avx2.h"
#include "attention/vnni.h"
#include "kernelforge_cpu.h"

int32_t kf_cut_rows(const uint16_t* x, int8_t* high, int8_t* low, int32_t* exponent, int32_t n, int32_t width) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t* row = x + i * width;
#if defined(KF_X86)
    if (kf::current_isa() == kf::Isa::kAvx512Vnni && width % 32 == 0) {
      exponent[i] = kf::row_exponent16(row, width);
      kf::cut_row16(row, width, exponent[i], 0, high + i * width, low + i * width);
      continue;
    }
    if (kf::current_isa() == kf::Isa::kAvx2 && width % 16 == 0) {
      exponent[i] = kf::row_exponent8(row, width);
      kf::cut_row8(row, width, exponent[i], high + i * width, low + i * width);
      continue;
    }
#endif
    exponent[i] = kf::row_exponent(row, width);
    kf::cut_row(row, width, exponent[i], high + i * width, low + i * width, 1);
  }
  return kf::kOk;
}
