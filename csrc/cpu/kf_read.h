// Stored elements as the contract reads them (C1): magnitudes below 2^-50 are +0.
#pragma once

#include "kf_isa.h"
#include "kf_scalar.h"

namespace kf {
namespace {

constexpr int32_t kSmallestRead = 77 << 23;  // 2^-50

KF_INLINE float read_value(float x) { return kf_f((kf_i(x) & 0x7FFFFFFF) < kSmallestRead ? 0 : kf_i(x)); }
KF_INLINE float read_value(uint16_t code) { return read_value(kf_f(int32_t(uint32_t(code) << 16))); }

}  // namespace
}  // namespace kf
