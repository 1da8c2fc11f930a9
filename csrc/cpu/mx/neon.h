// Arm NEON with the dot-product extension: sdot of signed slices, 16 columns in four registers.
#pragma once

#include "mx/slices.h"

#if defined(KF_AARCH64)
KF_TARGET_BEGIN("arch=armv8.2-a+dotprod")
namespace kf {
namespace {

struct NeonEngine {
  static constexpr bool kEvenRows = true;
  static constexpr int kOffset = 0;

  template <int kFormat>
  static int32_t slice(const MxTile& tile, int row, int m, int first, int blocks, const SlicedRows& out) {
    return slice_rows<kFormat, kOffset>(tile, row, m, first, blocks, out);
  }

  static int32_t unpack(const MxTile& tile, int col, int n, int first, int blocks, uint8_t* codes, float* factors) {
    return unpack_strip<kOffset>(tile, col, n, first, blocks, codes, factors);
  }

  template <int kRows>
  static KF_INLINE void dot(const int8_t* slices, int64_t lda, const int8_t* codes, int32x4_t dots[kRows][4]) {
    for (int half = 0; half < 2; ++half, codes += 4 * 4 * kStrip) {
      int8x16_t a[kRows];
      for (int r = 0; r < kRows; ++r) a[r] = vld1q_s8(slices + r * lda + half * 16);
      const auto step = [&](int j, auto product) {
        for (int c = 0; c < 4; ++c) {
          const int8x16_t w = vld1q_s8(codes + j * 4 * kStrip + c * 16);
          for (int r = 0; r < kRows; ++r) dots[r][c] = product(dots[r][c], w, a[r]);
        }
      };
      step(0, [](int32x4_t t, int8x16_t w, int8x16_t x) { return vdotq_laneq_s32(t, w, x, 0); });
      step(1, [](int32x4_t t, int8x16_t w, int8x16_t x) { return vdotq_laneq_s32(t, w, x, 1); });
      step(2, [](int32x4_t t, int8x16_t w, int8x16_t x) { return vdotq_laneq_s32(t, w, x, 2); });
      step(3, [](int32x4_t t, int8x16_t w, int8x16_t x) { return vdotq_laneq_s32(t, w, x, 3); });
    }
  }

  template <int kFormat, int kRows>
  static KF_INLINE void strip(float* acc, int64_t ld_acc, const SlicedRows& rows, const uint8_t* strip_codes,
                              const float* factors) {
    const int64_t blocks = rows.blocks, lda = blocks * kBlock;
    const int8_t* codes = reinterpret_cast<const int8_t*>(strip_codes);
    for (int64_t b = 0; b < blocks; ++b, codes += kStripBytes, factors += kStrip) {
      int32x4_t dots[kRows][4];
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < 4; ++c) dots[r][c] = vdupq_n_s32(0);
      }
      if (two_slices<kFormat>) {
        dot<kRows>(rows.hi + b * kBlock, lda, codes, dots);
        for (int r = 0; r < kRows; ++r) {
          for (int c = 0; c < 4; ++c) dots[r][c] = vshlq_n_s32(dots[r][c], 8);
        }
      }
      dot<kRows>(rows.lo + b * kBlock, lda, codes, dots);
      for (int r = 0; r < kRows; ++r) {
        const float fa = rows.factor[r * blocks + b];
        for (int c = 0; c < 4; ++c) {
          float* at = acc + r * ld_acc + c * 4;
          const float32x4_t scale = vmulq_n_f32(vld1q_f32(factors + c * 4), fa);
          const float32x4_t value = vcvtq_f32_s32(dots[r][c]), sum = vld1q_f32(at);
          vst1q_f32(at, may_fuse<kFormat> ? vfmaq_f32(sum, value, scale) : vaddq_f32(sum, vmulq_f32(value, scale)));
        }
      }
    }
  }

  template <int kFormat, int kRows>
  static void kernel(float* acc, int64_t ld_acc, const SlicedRows& rows, const SlicedPanel& panel) {
    if (panel.clear) clear_sums(acc, ld_acc, kRows, kPanel);
    constexpr int kStep = kRows == 1 ? 1 : 2;
    for (int r = 0; r < kRows; r += kStep) {
      for (int s = 0; s < 2; ++s) {
        strip<kFormat, kStep>(acc + r * ld_acc + s * kStrip, ld_acc, rows.from(r),
                              panel.codes + s * panel.blocks * kStripBytes, panel.factor + s * panel.blocks * kStrip);
      }
    }
  }
};

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
