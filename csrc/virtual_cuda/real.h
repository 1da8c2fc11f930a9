// Exact small-float conversions and helpers on binary32/binary64, one rounding at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace kernelforge::vcuda {

constexpr uint32_t kNan32 = 0x7fffffffu;  // the NaN every fp32 instruction of the device makes

inline uint32_t bits_of_float(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float float_of_bits(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint64_t bits_of_double(double d) {
  uint64_t u;
  std::memcpy(&u, &d, 8);
  return u;
}
inline double double_of_bits(uint64_t u) {
  double d;
  std::memcpy(&d, &u, 8);
  return d;
}
inline float canonical(float f) { return f != f ? float_of_bits(kNan32) : f; }
inline float flush(float f) {
  uint32_t u = bits_of_float(f);
  return (u & 0x7f800000u) == 0 ? float_of_bits(u & 0x80000000u) : f;
}

// a + b rounded to odd in binary64: rounding it again to a format of at most 51 bits is one rounding of the exact sum.
inline double add_odd(double a, double b) {
  double s = a + b;
  if (!std::isfinite(s)) return s;
  double t = s - a;
  double e = (a - (s - t)) + (b - t);
  if (e != 0 && !(bits_of_double(s) & 1)) {
    bool up = (e > 0) == (s > 0);
    s = double_of_bits(up ? bits_of_double(s) + 1 : bits_of_double(s) - 1);
  }
  return s;
}

enum class Round : uint8_t { kNearest, kZero, kDown, kUp, kAway };

// An IEEE-like format of `E` exponent and `M` fraction bits. `saturate`: to the largest finite value.
// E4M3 has no infinity and one NaN (0x7f); overflow without saturation gives NaN.
struct SmallFormat {
  int exponent_bits, fraction_bits;
  bool has_infinity;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int max_exponent() const { return has_infinity ? bias() : (1 << exponent_bits) - 1 - bias(); }
  uint32_t nan() const {
    uint32_t all = (1u << (exponent_bits + fraction_bits)) - 1;
    return all;
  }
  uint32_t infinity() const { return ((1u << exponent_bits) - 1) << fraction_bits; }
  uint32_t largest() const { return has_infinity ? infinity() - 1 : nan() - 1; }

  uint32_t encode(double x, Round round, bool saturate) const {
    uint32_t sign = static_cast<uint32_t>(bits_of_double(x) >> 63) << (exponent_bits + fraction_bits);
    if (x != x) return nan();
    double a = std::fabs(x);
    if (a == 0) return sign;
    bool negative = sign != 0;
    if (std::isinf(a)) return sign | (saturate ? largest() : has_infinity ? infinity() : nan());
    int e;
    std::frexp(a, &e);
    --e;  // a in [2^e, 2^(e+1))
    int least = 1 - bias();
    if (e < least) e = least;
    double scaled = std::ldexp(a, fraction_bits - e);  // the integer significand with what is to be rounded
    double floor = std::floor(scaled), rest = scaled - floor;
    bool up = false;
    switch (round) {
      case Round::kNearest:
        up = rest > 0.5 || (rest == 0.5 && std::fmod(floor, 2.0) != 0);
        break;
      case Round::kAway:
        up = rest >= 0.5;
        break;
      case Round::kZero:
        break;
      case Round::kDown:
        up = negative && rest > 0;
        break;
      case Round::kUp:
        up = !negative && rest > 0;
        break;
    }
    uint64_t significand = static_cast<uint64_t>(floor) + (up ? 1 : 0);
    if (significand >> (fraction_bits + 1)) {
      significand >>= 1;
      ++e;
    }
    uint32_t code;
    if (significand >> fraction_bits)
      code = (static_cast<uint32_t>(e + bias()) << fraction_bits) +
             (static_cast<uint32_t>(significand) & ((1u << fraction_bits) - 1));
    else
      code = static_cast<uint32_t>(significand);
    if (e > max_exponent() || code > largest()) {
      bool to_largest =
          round == Round::kZero || (round == Round::kDown && !negative) || (round == Round::kUp && negative);
      return sign | (saturate || to_largest ? largest() : has_infinity ? infinity() : nan());
    }
    return sign | code;
  }

  float decode(uint32_t code) const {
    uint32_t magnitude = code & ((1u << (exponent_bits + fraction_bits)) - 1);
    bool negative = code >> (exponent_bits + fraction_bits) & 1;
    uint32_t e = magnitude >> fraction_bits, f = magnitude & ((1u << fraction_bits) - 1);
    float v;
    if (has_infinity && magnitude > infinity()) return float_of_bits(kNan32);
    if (!has_infinity && magnitude == nan()) return float_of_bits(kNan32);
    if (has_infinity && magnitude == infinity())
      v = std::numeric_limits<float>::infinity();
    else if (e == 0)
      v = std::ldexp(static_cast<float>(f), 1 - bias() - fraction_bits);
    else
      v = std::ldexp(static_cast<float>(f | 1u << fraction_bits), static_cast<int>(e) - bias() - fraction_bits);
    return negative ? -v : v;
  }
};

constexpr SmallFormat kHalf{5, 10, true};
constexpr SmallFormat kE4M3{4, 3, false};
constexpr SmallFormat kE5M2{5, 2, true};

inline float bf16_to_float(uint32_t b) { return float_of_bits(b << 16); }
constexpr SmallFormat kBfloat{8, 7, true};

// The hot conversions without the general path.
inline uint32_t float_to_bf16(float f) {
  uint32_t u = bits_of_float(f);
  if (f != f) return 0x7fff;
  return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}

inline float half_to_float(uint32_t h) {
  uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of_bits(magnitude > 0x7c00u ? kNan32 : sign | 0x7f800000u);
  if (magnitude >= 0x400u) return float_of_bits(sign | ((magnitude << 13) + (112u << 23)));
  float v = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -v : v;
}

// binary64 to binary32 in a given direction.
inline float narrow(double x, Round r) {
  float f = static_cast<float>(x);
  if (r == Round::kNearest || f != f || static_cast<double>(f) == x) return f;
  bool above = static_cast<double>(f) > x;
  bool step_down = (r == Round::kDown && above) || (r == Round::kZero && (x > 0 ? above : false));
  bool step_up = (r == Round::kUp && !above) || (r == Round::kZero && (x < 0 ? !above : false));
  if (step_down) return std::nextafterf(f, -std::numeric_limits<float>::infinity());
  if (step_up) return std::nextafterf(f, std::numeric_limits<float>::infinity());
  return f;
}

}  // namespace kernelforge::vcuda
