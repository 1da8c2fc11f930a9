// The polynomial of the contract's exponential (C6), see kernelforge.numerics.elementary.
#pragma once

#include "core/isa.h"
#include "core/scalar.h"

namespace kf {
namespace {

constexpr int32_t kExp2[] = {0x3920FDDE, 0x3AAF9F29, 0x3C1D96A6, 0x3D635774, 0x3E75FDEE, int32_t(0xBE9D1BCF)};

// 2^r for |r| <= 1/2.
KF_INLINE float exp2_of_fraction(float r) {
  float q = kf_f(kExp2[0]);
  for (int i = 1; i < 6; ++i) q = q * r + kf_f(kExp2[i]);
  return 1.0f + (r + r * q);
}

}  // namespace
}  // namespace kf
