#include "attention/avx2.h"
#include "attention/vnni.h"
#include "kernelforge_cpu.h"

int32_t kf_attention_chunk(float* m, float* l, float* o, int64_t ld_o, const int8_t* q_high, const int8_t* q_low,
                           const int32_t* q_exponent, const uint16_t* kv, const uint16_t* entries,
                           const int32_t* segment, const int32_t* rows, int32_t heads, int32_t width,
                           int32_t factor_bits, int32_t fresh) {
  const kf::AttentionChunk chunk{m,         l,     o,          ld_o,
                                 q_high,    q_low, q_exponent, *segment == 0 ? kv : entries,
                                 rows,      heads, width,      kf_f(factor_bits),
                                 fresh != 0};
  const kf::Isa isa = kf::current_isa();
  if (heads < 0 || heads % 4 != 0 || width < 0 || width % 32 != 0) return kf::kBadArgument;
#if defined(KF_X86)
  if (isa == kf::Isa::kAvx512Vnni) return kf::attention_chunk_vnni(chunk);
  if (isa == kf::Isa::kAvx2) return kf::attention_chunk_avx2(chunk);
#endif
  return kf::attention_chunk_by_gemm(isa, chunk);
}
