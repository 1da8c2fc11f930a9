#include "attention/native_avx2.h"
#include "attention/native_bf16.h"
#include "kernelforge_cpu.h"

namespace kf {
namespace {

// Without bfloat16 dots and AVX2: the exact definition, on queries cut here.
int attention_chunk_of_rows(AttentionChunk x, const uint16_t* q) {
  const int64_t elements = int64_t(x.heads) * x.width;
  static thread_local Scratch scratch;  // the exact engines have the others
  if (!scratch.reserve(size_t(2 * elements + 4 * x.heads + 4 * 64))) return kOutOfMemory;
  int8_t* high = scratch.take<int8_t>(elements);
  int8_t* low = scratch.take<int8_t>(elements);
  int32_t* exponent = scratch.take<int32_t>(x.heads);
  for (int i = 0; i < x.heads; ++i) {
    const int64_t at = int64_t(i) * x.width;
    exponent[i] = row_exponent(q + at, x.width);
    cut_row(q + at, x.width, exponent[i], high + at, low + at, 1);
  }
  x.q_high = high;
  x.q_low = low;
  x.q_exponent = exponent;
#if defined(KF_X86)
  if (current_isa() == Isa::kAvx512Vnni) return attention_chunk_vnni(x);
#endif
  return attention_chunk_by_gemm(current_isa(), x);
}

}  // namespace
}  // namespace kf

int32_t kf_attention_chunk_native(float* m, float* l, float* o, int64_t ld_o, const uint16_t* q, const uint16_t* kv,
                                  const uint16_t* entries, const int32_t* segment, const int32_t* rows, int32_t heads,
                                  int32_t width, int32_t factor_bits, int32_t fresh) {
  const kf::AttentionChunk chunk{m,         l,       o,       ld_o,
                                 nullptr,   nullptr, nullptr, *segment == 0 ? kv : entries,
                                 rows,      heads,   width,   kf_f(factor_bits),
                                 fresh != 0};
  if (heads < 0 || heads % 8 != 0 || width < 0 || width % 32 != 0) return kf::kBadArgument;
#if defined(KF_X86)
  if (kf::current_isa() >= kf::Isa::kAvx512Bf16 && kf::isa_available(kf::Isa::kAvx512Bf16)) {
    return kf::attention_chunk_bf16(chunk, q);
  }
  if (kf::current_isa() == kf::Isa::kAvx2) return kf::attention_chunk_native_avx2(chunk, q);
#endif
  return kf::attention_chunk_of_rows(chunk, q);
}
