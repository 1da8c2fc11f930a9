// Shared library for test_microkernels.py: every engine by name, beside the entry points generated code calls.
#include "units/kf_gemm_s8.cpp"
#include "units/kf_indexer_scores.cpp"
#include "units/kf_mx_block_accumulate_bf16.cpp"
#include "units/kf_mx_block_accumulate_e2m1.cpp"
#include "units/kf_mx_block_accumulate_e4m3_e8m0.cpp"
#include "units/kf_mx_block_accumulate_e4m3_f32.cpp"

extern "C" {

int32_t harness_isa_available(int32_t isa) { return kf::isa_available(static_cast<kf::Isa>(isa)); }
int32_t harness_current_isa() { return static_cast<int32_t>(kf::current_isa()); }

int32_t harness_mx(int32_t isa, float* acc, int64_t ld_acc, const void* a, int64_t lda, const void* a_scale,
                   int64_t ld_a_scale, const uint8_t* w, int64_t ldw, const uint8_t* w_scale, int64_t ld_w_scale,
                   int32_t m, int32_t n, int32_t k, int32_t a_format, int32_t clear) {
  const kf::MxTile tile{acc, ld_acc, a, lda, a_scale, ld_a_scale, w, ldw, w_scale, ld_w_scale, m, n, k, clear != 0};
  const auto engine = static_cast<kf::Isa>(isa);
  switch (a_format) {
    case kf::kE2m1:
      return kf::accumulate<kf::kE2m1>(engine, tile);
    case kf::kE4m3E8m0:
      return kf::accumulate<kf::kE4m3E8m0>(engine, tile);
    case kf::kE4m3F32:
      return kf::accumulate<kf::kE4m3F32>(engine, tile);
    default:
      return kf::accumulate<kf::kBf16>(engine, tile);
  }
}

int32_t harness_mx_entry(float* acc, int64_t ld_acc, const void* a, int64_t lda, const void* a_scale,
                         int64_t ld_a_scale, const uint8_t* w, int64_t ldw, const uint8_t* w_scale, int64_t ld_w_scale,
                         int32_t m, int32_t n, int32_t k, int32_t a_format, int32_t clear) {
  decltype(&kf_mx_block_accumulate_e2m1) entries[] = {kf_mx_block_accumulate_e2m1, kf_mx_block_accumulate_e4m3_e8m0,
                                                      kf_mx_block_accumulate_e4m3_f32, kf_mx_block_accumulate_bf16};
  return entries[a_format](acc, ld_acc, a, lda, a_scale, ld_a_scale, w, ldw, w_scale, ld_w_scale, m, n, k, clear);
}

int32_t harness_gemm_s8(int32_t isa, int32_t* c, int64_t ldc, const int8_t* a, int64_t lda, const int8_t* b,
                        int64_t ldb, int32_t m, int32_t n, int32_t k, int32_t trans_b, int32_t clear) {
  return kf::gemm_s8(static_cast<kf::Isa>(isa), {c, ldc, a, lda, b, ldb, m, n, k, trans_b != 0, clear != 0});
}

int32_t harness_gemm_s8_entry(int32_t* c, int64_t ldc, const int8_t* a, int64_t lda, const int8_t* b, int64_t ldb,
                              int32_t m, int32_t n, int32_t k, int32_t trans_b, int32_t clear) {
  return kf_gemm_s8(c, ldc, a, lda, b, ldb, m, n, k, trans_b, clear);
}

int32_t harness_indexer_scores(int32_t isa, float* scores, int64_t ld_scores, const uint8_t* q, int64_t ldq,
                               const uint8_t* q_scale, int64_t ld_q_scale, const uint8_t* k, int64_t ldk,
                               const uint8_t* k_scale, int64_t ld_k_scale, const float* weights, int64_t ld_weights,
                               const int32_t* visible, int32_t queries, int32_t entries, int32_t heads, int32_t depth) {
  return kf::indexer_scores(static_cast<kf::Isa>(isa),
                            {scores, ld_scores, q, ldq, q_scale, ld_q_scale, k, ldk, k_scale, ld_k_scale, weights,
                             ld_weights, visible, queries, entries, heads, depth});
}

float harness_scalar(int32_t operation, float a, float b) {
  switch (operation) {
    case 0:
      return kf_add(a, b);
    case 1:
      return kf_sub(a, b);
    case 2:
      return kf_mul(a, b);
    default:
      return kf_f(kf_i(a));
  }
}

void harness_bf16(uint16_t* out, const float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = kf_bf16(x[i]);
}

}  // extern "C"
