// Stored elements as the contract reads them (C1), magnitudes below 2^-50 as +0, and as it writes them (C8).
#pragma once

#include "core/isa.h"
#include "core/scalar.h"

namespace kf {
namespace {

constexpr float kSmallestRead = 0x1p-50f;
constexpr int32_t kSmallestReadBits = 77 << 23;

KF_INLINE float read_value(float x) { return kf_f((kf_i(x) & 0x7FFFFFFF) < kSmallestReadBits ? 0 : kf_i(x)); }
KF_INLINE float read_value(uint16_t code) { return read_value(kf_f(int32_t(uint32_t(code) << 16))); }

// A float32 as an op stores it: NaN is 0x7FC00000, -0 is +0; to bfloat16 by round to nearest even.
KF_INLINE int32_t canonical_bits(float x) { return x != x ? 0x7FC00000 : x == 0.0f ? 0 : kf_i(x); }
KF_INLINE void store_value(float* to, float x) { *to = kf_f(canonical_bits(x)); }
KF_INLINE uint32_t bf16_code(uint32_t bits) { return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16; }
KF_INLINE void store_value(uint16_t* to, float x) { *to = uint16_t(bf16_code(uint32_t(canonical_bits(x)))); }

}  // namespace
}  // namespace kf
