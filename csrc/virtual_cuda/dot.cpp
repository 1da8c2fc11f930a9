#include "dot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "machine.h"
#include "real.h"

namespace kernelforge::vcuda {
namespace {

using Float8 = float __attribute__((vector_size(32)));

// d[rows][n] += a[rows][k] b[k][n] in binary32, ascending in k: exact where the callers guarantee that every partial
// sum is.
__attribute__((target_clones("default", "avx2"))) void multiply(uint32_t rows, uint32_t n, uint32_t k, const float* a,
                                                                const float* b, float* d) {
  for (uint32_t j = 0; j < n; j += 8) {
    for (uint32_t i = 0; i < rows; i += 4) {
      Float8 acc0, acc1, acc2, acc3, column;
      float* out = d + i * n + j;
      std::memcpy(&acc0, out, sizeof(Float8));
      std::memcpy(&acc1, out + n, sizeof(Float8));
      std::memcpy(&acc2, out + 2 * n, sizeof(Float8));
      std::memcpy(&acc3, out + 3 * n, sizeof(Float8));
      const float* row = a + i * k;
      for (uint32_t x = 0; x < k; ++x) {
        std::memcpy(&column, b + x * n + j, sizeof(Float8));
        acc0 += column * row[x];
        acc1 += column * row[x + k];
        acc2 += column * row[x + 2 * k];
        acc3 += column * row[x + 3 * k];
      }
      std::memcpy(out, &acc0, sizeof(Float8));
      std::memcpy(out + n, &acc1, sizeof(Float8));
      std::memcpy(out + 2 * n, &acc2, sizeof(Float8));
      std::memcpy(out + 3 * n, &acc3, sizeof(Float8));
    }
  }
}

// All values are integers below 2^31 in magnitude; returns the largest magnitude, or NaN.
__attribute__((target_clones("default", "avx2"), optimize("O3"))) float integer_magnitude(const float* v,
                                                                                          uint32_t count) {
  float largest[8] = {};
  uint32_t bad = 0;
  for (uint32_t i = 0; i < count; i += 8) {
    for (uint32_t c = 0; c < 8; ++c) {
      float x = v[i + c], m = x < 0 ? -x : x;
      largest[c] = m > largest[c] ? m : largest[c];
      bool fits = m < 0x1p31f;
      float back = static_cast<float>(static_cast<int32_t>(fits ? x : 0.5f));
      bad |= !(back == x);
    }
  }
  if (bad) return std::numeric_limits<float>::quiet_NaN();
  return *std::max_element(largest, largest + 8);
}

int lowest_bit(float v) {  // exponent of the last set bit of a finite nonzero value
  int e;
  float m = std::frexp(v, &e);
  uint32_t bits = static_cast<uint32_t>(std::ldexp(std::fabs(m), 24));
  return e - 24 + __builtin_ctz(bits);
}

void dot_exact(const DotTile& t, float* d, int bits) {
  for (uint32_t i = 0; i < t.rows; ++i) {
    for (uint32_t j = 0; j < t.n; ++j) {
      float& c = d[i * t.n + j];
      int low = std::numeric_limits<int>::max();
      double total = c, magnitude = std::fabs(static_cast<double>(c));
      bool finite = std::isfinite(c);
      if (finite && c != 0) low = lowest_bit(c);
      for (uint32_t x = 0; x < t.k; ++x) {
        float a = t.a[i * t.k + x], b = t.b[x * t.n + j];
        double p = static_cast<double>(a) * b;
        finite = finite && std::isfinite(a) && std::isfinite(b);
        total += p;
        magnitude += std::fabs(p);
        if (finite && p != 0) low = std::min(low, lowest_bit(a) + lowest_bit(b));
      }
      if (!finite) {
        c = canonical(static_cast<float>(total));
        continue;
      }
      if (magnitude == 0) {
        c = 0;
        continue;
      }
      if (!(magnitude < std::ldexp(1.0, low + bits)))
        throw KernelFault("the sum of row " + std::to_string(i) + ", column " + std::to_string(j) +
                          " is not exact in the matrix unit: magnitudes add to " + std::to_string(magnitude) +
                          ", the last bit is 2^" + std::to_string(low) + ", and its accumulator keeps " +
                          std::to_string(bits) + " bits");
      c = static_cast<float>(total) + 0.0f;
    }
  }
}

std::array<float, 256> table(const SmallFormat& f) {
  std::array<float, 256> out;
  for (uint32_t k = 0; k < 256; ++k) out[k] = f.decode(k);
  return out;
}

}  // namespace

Elem parse_elem(const std::string& t, bool& known) {
  known = true;
  if (t == "s8") return Elem::kS8;
  if (t == "u8") return Elem::kU8;
  if (t == "f16") return Elem::kF16;
  if (t == "bf16") return Elem::kBF16;
  if (t == "e4m3") return Elem::kE4M3;
  if (t == "e5m2") return Elem::kE5M2;
  known = false;
  return Elem::kS8;
}

uint32_t elem_bytes(Elem e) { return e == Elem::kF16 || e == Elem::kBF16 ? 2 : 1; }
bool elem_is_integer(Elem e) { return e == Elem::kS8 || e == Elem::kU8; }

int accumulator_bits(Elem a, Elem, int sm) {
  bool fp8 = a == Elem::kE4M3 || a == Elem::kE5M2;
  return fp8 && sm < 100 ? 14 : 24;
}

void decode_elements(Elem e, const uint8_t* bytes, uint32_t count, float* out, uint32_t stride) {
  static const std::array<float, 256> e4m3 = table(kE4M3), e5m2 = table(kE5M2);
  switch (e) {
    case Elem::kS8:
      for (uint32_t k = 0; k < count; ++k) out[k * stride] = static_cast<float>(static_cast<int8_t>(bytes[k]));
      break;
    case Elem::kU8:
      for (uint32_t k = 0; k < count; ++k) out[k * stride] = static_cast<float>(bytes[k]);
      break;
    case Elem::kE4M3:
      for (uint32_t k = 0; k < count; ++k) out[k * stride] = e4m3[bytes[k]];
      break;
    case Elem::kE5M2:
      for (uint32_t k = 0; k < count; ++k) out[k * stride] = e5m2[bytes[k]];
      break;
    case Elem::kBF16:
    case Elem::kF16:
      for (uint32_t k = 0; k < count; ++k) {
        uint32_t v = static_cast<uint32_t>(bytes[2 * k] | bytes[2 * k + 1] << 8);
        out[k * stride] = e == Elem::kBF16 ? bf16_to_float(v) : half_to_float(v);
      }
      break;
  }
}

void dot_int32(const DotTile& t, int32_t* d, bool saturate) {
  alignas(64) float sum[16 * kMaxN];
  std::fill(sum, sum + t.rows * t.n, 0.0f);
  multiply(t.rows, t.n, t.k, t.a, t.b, sum);  // at most 32 * 255 * 255, exact
  for (uint32_t i = 0; i < t.rows * t.n; ++i) {
    int32_t s = static_cast<int32_t>(sum[i]);
    if (saturate) {
      int64_t v = static_cast<int64_t>(d[i]) + s;
      d[i] = static_cast<int32_t>(
          std::clamp<int64_t>(v, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
    } else {
      d[i] = static_cast<int32_t>(static_cast<uint32_t>(d[i]) + static_cast<uint32_t>(s));
    }
  }
}

void dot_float(const DotTile& t, float* d, int bits) {
  float a = integer_magnitude(t.a, t.rows * t.k), b = integer_magnitude(t.b, t.k * t.n),
        c = integer_magnitude(d, t.rows * t.n);
  double bound = static_cast<double>(t.k) * a * b + c;
  if (bound < static_cast<double>(1u << bits)) {  // false for NaN: some value is no integer
    multiply(t.rows, t.n, t.k, t.a, t.b, d);
    for (uint32_t i = 0; i < t.rows * t.n; ++i) d[i] += 0.0f;
    return;
  }
  dot_exact(t, d, bits);
}

void dot_rounded(const DotTile& t, float* d) {
  multiply(t.rows, t.n, t.k, t.a, t.b, d);
  for (uint32_t i = 0; i < t.rows * t.n; ++i) d[i] = canonical(d[i]) + 0.0f;
}

}  // namespace kernelforge::vcuda
