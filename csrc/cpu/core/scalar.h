// Scalar operations of the numerics contract, opaque to the compiler that generated the calling C code.
//
// TVM folds (x + c) - c to x and prints floats with six digits, so generated code passes floats as bits and
// calls these instead of writing the expressions. Compile with -ffp-contract=off -fwrapv -fno-strict-aliasing.
#pragma once

#include <cstdint>
#include <cstring>

static inline float kf_f(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline int32_t kf_i(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float kf_add(float a, float b) { return a + b; }
static inline float kf_sub(float a, float b) { return a - b; }
static inline float kf_mul(float a, float b) { return a * b; }

// Round to nearest even bf16; every NaN becomes 0x7FC0.
static inline uint16_t kf_bf16(float value) {
  const uint32_t bits = static_cast<uint32_t>(kf_i(value));
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
