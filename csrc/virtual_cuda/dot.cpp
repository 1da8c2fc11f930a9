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

// An absolute value and the value of its last set bit, which is infinite for a zero.
struct Size {
  float magnitude, last_bit;
};
inline Size size_of(float v) {
  uint32_t bits = bits_of_float(v) & 0x7fffffff;
  float magnitude = float_of_bits(bits);
  float last = bits & 0x7fffff ? magnitude - float_of_bits(bits & (bits - 1)) : magnitude;
  return {magnitude, bits ? last : std::numeric_limits<float>::infinity()};
}

// What bounds every dot of a tile: sums of magnitudes by row of A, the largest by column of B, the least last bits of
// both. An infinity or a NaN makes the magnitude one.
struct Bounds {
  alignas(64) float row_sum[16], row_bit[16], column_most[kMaxN], column_bit[kMaxN];
};

__attribute__((target_clones("default", "avx2"), optimize("O3"))) void bound_columns(const DotTile& t, Bounds& out) {
  uint32_t most[kMaxN] = {};
  std::fill_n(out.column_bit, t.n, std::numeric_limits<float>::infinity());
  for (uint32_t x = 0; x < t.k; ++x) {
    const float* row = t.b + x * t.n;
    for (uint32_t j = 0; j < t.n; ++j) {
      Size s = size_of(row[j]);
      most[j] = std::max(most[j], bits_of_float(s.magnitude));
      out.column_bit[j] = s.last_bit < out.column_bit[j] ? s.last_bit : out.column_bit[j];
    }
  }
  for (uint32_t j = 0; j < t.n; ++j) out.column_most[j] = float_of_bits(most[j]);
}

void bound_rows(const DotTile& t, Bounds& out) {
  for (uint32_t i = 0; i < t.rows; ++i) {
    double sum = 0;
    float bit = std::numeric_limits<float>::infinity();
    for (uint32_t x = 0; x < t.k; ++x) {
      Size s = size_of(t.a[i * t.k + x]);
      sum += s.magnitude;
      bit = std::min(bit, s.last_bit);
    }
    out.row_sum[i] = std::nextafter(static_cast<float>(sum), std::numeric_limits<float>::infinity());
    out.row_bit[i] = bit;
  }
}

// Per element of row i whether by the bounds `bits` bits and binary32 hold every partial sum; whether all are so.
__attribute__((target_clones("default", "avx2"), optimize("O3"))) bool bound_sums(const DotTile& t, const Bounds& by,
                                                                                  uint32_t i, const float* d, int bits,
                                                                                  uint8_t* bounded) {
  const double room = static_cast<double>(1u << bits), sum = by.row_sum[i], bit = by.row_bit[i];
  bool all = true;
  for (uint32_t j = 0; j < t.n; ++j) {
    Size c = size_of(d[j]);
    double low = bit * by.column_bit[j];
    double least = low < c.last_bit ? low : c.last_bit;
    double most = sum * by.column_most[j] + c.magnitude;
    bounded[j] = (most < least * room) & (most < 0x1p128) & (low >= 0x1p-149);
    all &= bounded[j];
  }
  return all;
}

float dot_exact(const DotTile& t, uint32_t i, uint32_t j, float c, int bits) {
  Size start = size_of(c);
  double total = c, magnitude = start.magnitude, low = start.last_bit;
  bool finite = std::isfinite(c);
  for (uint32_t x = 0; x < t.k; ++x) {
    float a = t.a[i * t.k + x], b = t.b[x * t.n + j];
    double p = static_cast<double>(a) * b;
    finite = finite && std::isfinite(a) && std::isfinite(b);
    total += p;
    magnitude += std::fabs(p);
    if (p != 0) low = std::min(low, static_cast<double>(size_of(a).last_bit) * size_of(b).last_bit);
  }
  if (!finite) return canonical(static_cast<float>(total));
  if (magnitude == 0) return 0;
  if (!(magnitude < std::ldexp(low, bits)))
    throw KernelFault("the sum of row " + std::to_string(i) + ", column " + std::to_string(j) +
                      " is not exact in the matrix unit: magnitudes add to " + std::to_string(magnitude) +
                      ", the last bit is 2^" + std::to_string(std::ilogb(low)) + ", and its accumulator keeps " +
                      std::to_string(bits) + " bits");
  return static_cast<float>(total) + 0.0f;
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
  Bounds bounds;
  bound_rows(t, bounds);
  bound_columns(t, bounds);
  uint8_t bounded[16 * kMaxN];
  bool all = true;
  for (uint32_t i = 0; i < t.rows; ++i) all &= bound_sums(t, bounds, i, d + i * t.n, bits, bounded + i * t.n);
  std::vector<float> before;
  if (!all) before.assign(d, d + t.rows * t.n);
  multiply(t.rows, t.n, t.k, t.a, t.b, d);
  for (uint32_t i = 0; i < t.rows * t.n; ++i) d[i] += 0.0f;
  for (uint32_t at = 0; at < before.size(); ++at) {
    if (!bounded[at]) d[at] = dot_exact(t, at / t.n, at % t.n, before[at], bits);
  }
}

void dot_rounded(const DotTile& t, float* d) {
  multiply(t.rows, t.n, t.k, t.a, t.b, d);
  for (uint32_t i = 0; i < t.rows * t.n; ++i) d[i] = canonical(d[i]) + 0.0f;
}

}  // namespace kernelforge::vcuda
