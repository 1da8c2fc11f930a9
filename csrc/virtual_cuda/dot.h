// Exact dots behind every matrix instruction: D[rows][n] += A[rows][k] * B[k][n].
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "program.h"

namespace kernelforge::vcuda {

constexpr uint32_t kMaxN = 256, kMaxK = 32;

struct DotTile {
  uint32_t rows = 16, n = 8, k = 16;
  alignas(64) float a[16 * kMaxK];     // [rows][k]
  alignas(64) float b[kMaxK * kMaxN];  // [k][n]
};

Elem parse_elem(const std::string& type, bool& known);
uint32_t elem_bytes(Elem e);
bool elem_is_integer(Elem e);
// Values of `count` packed elements.
void decode_elements(Elem e, const uint8_t* bytes, uint32_t count, float* out, uint32_t stride);

// Integer operands: wraps modulo 2^32, or saturates.
void dot_int32(const DotTile& t, int32_t* d, bool saturate);
// Float operands: exact, or a KernelFault that names the element whose sum does not fit the accumulator.
void dot_float(const DotTile& t, float* d, int accumulator_bits);
// Float operands of a program whose sums may round (native mode): binary32, products added to d in ascending k.
void dot_rounded(const DotTile& t, float* d);
// Bits that the accumulator of the matrix unit keeps exactly.
int accumulator_bits(Elem a, Elem b, int sm);

}  // namespace kernelforge::vcuda
