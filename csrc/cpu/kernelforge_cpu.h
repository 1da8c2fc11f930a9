// What the C code generated for the CPU backend may call: scalar operations, inlined, and microkernels.
//
// C++17. Flags: -O3 -std=c++17 -ffp-contract=off -fwrapv -fno-strict-aliasing; no -march is needed, the engines carry
// their own targets and one is chosen at run time (environment variable KERNELFORGE_CPU_ISA =
// amx | avx512vnni | avx512bf16 | avx2 | neon | portable overrides the choice, which depends on the format of A). All
// engines give the same bits.
//
// A microkernel NAME is compiled once, from units/NAME.cpp, and its object is linked into every kernel that calls it:
// engines take seconds to compile, a kernel without them a fraction of one. They return a status, 0 for success.
#pragma once

#include <cstdint>

#include "core/scalar.h"

#define KF_MICROKERNEL extern "C" __attribute__((visibility("hidden")))

// acc[m,n] += the sum over K's blocks of 32, ascending, of A W^T; k counts elements. Leading dimensions count elements
// of the stored type. `clear`: acc starts from zero and is not read. One function for each format of A, named as in
// kernelforge.numerics.block_accumulate.
#define KF_DECLARE(format)                                                                                          \
  KF_MICROKERNEL int32_t kf_mx_block_accumulate_##format(float* acc, int64_t ld_acc, const void* a, int64_t lda,    \
                                                         const void* a_scale, int64_t ld_a_scale, const uint8_t* w, \
                                                         int64_t ldw, const uint8_t* w_scale, int64_t ld_w_scale,   \
                                                         int32_t m, int32_t n, int32_t k, int32_t clear);
KF_DECLARE(e2m1)
KF_DECLARE(e4m3_e8m0)
KF_DECLARE(e4m3_f32)
KF_DECLARE(bf16)
#undef KF_DECLARE

// C[m,n] (+)= A B, or A B^T if trans_b; exact modulo 2^32. `clear`: C starts from zero.
KF_MICROKERNEL int32_t kf_gemm_s8(int32_t* c, int64_t ldc, const int8_t* a, int64_t lda, const int8_t* b, int64_t ldb,
                                  int32_t m, int32_t n, int32_t k, int32_t trans_b, int32_t clear);

// Scores of the lightning indexer, see kernelforge.ops.lightning_indexer.tile; entries beyond visible[s] are left
// alone.
KF_MICROKERNEL int32_t kf_indexer_scores(float* scores, int64_t ld_scores, const uint8_t* q, int64_t ldq,
                                         const uint8_t* q_scale, int64_t ld_q_scale, const uint8_t* k, int64_t ldk,
                                         const uint8_t* k_scale, int64_t ld_k_scale, const float* weights,
                                         int64_t ld_weights, const int32_t* visible, int32_t queries, int32_t entries,
                                         int32_t heads, int32_t depth);

// Its selection: take in a tile of scores, keep the topk largest, rank what is kept.
KF_MICROKERNEL int32_t kf_select_append(int32_t* keys, int32_t* index, int32_t* count, int32_t* threshold,
                                        int32_t capacity, const float* scores, const int32_t* visible, int32_t first,
                                        int32_t queries, int32_t entries, int32_t topk);
KF_MICROKERNEL int32_t kf_select_reduce(int32_t* keys, int32_t* index, int32_t* count, int32_t* threshold,
                                        int32_t capacity, int32_t queries, int32_t topk);
KF_MICROKERNEL int32_t kf_select_sort(const int32_t* keys, const int32_t* count, int32_t* order, int32_t capacity,
                                      int32_t queries, int32_t size);

// A state (m[heads], l[heads], o[heads][width]) with one chunk of entries; see kernelforge.numerics.attention. `fresh`:
// the state before is empty and not read.
KF_MICROKERNEL int32_t kf_attention_chunk(float* m, float* l, float* o, int64_t ld_o, const int8_t* q_high,
                                          const int8_t* q_low, const int32_t* q_exponent, const uint16_t* kv,
                                          const uint16_t* entries, const int32_t* segment, const int32_t* rows,
                                          int32_t heads, int32_t width, int32_t factor_bits, int32_t fresh);
// The same on bfloat16 queries [heads][width], by bfloat16 dots where the CPU has them, or in float32 by AVX2: not the
// definition's bits.
KF_MICROKERNEL int32_t kf_attention_chunk_native(float* m, float* l, float* o, int64_t ld_o, const uint16_t* q,
                                                 const uint16_t* kv, const uint16_t* entries, const int32_t* segment,
                                                 const int32_t* rows, int32_t heads, int32_t width, int32_t factor_bits,
                                                 int32_t fresh);

// out[m][n] = a[m][k] times b[n][k], bfloat16, by bfloat16 dots where the CPU has them: binary32 sums, rounded.
KF_MICROKERNEL int32_t kf_rounded_dot(float* out, const uint16_t* a, const uint16_t* b, int32_t m, int32_t n,
                                      int32_t k);

// Slices and exponents of n rows of bfloat16.
KF_MICROKERNEL int32_t kf_cut_rows(const uint16_t* x, int8_t* high, int8_t* low, int32_t* exponent, int32_t n,
                                   int32_t width);
// acc[m,n] += the dot of one chunk of x[m,k] (float32 where wide, else bfloat16) with weights [n,k] in three slices; k
// is a multiple of 32, at most 512. x is cut into `slices`, and slice products of the `ranks` highest weights are kept.
KF_MICROKERNEL int32_t kf_sliced_dot_accumulate(float* acc, int64_t ld_acc, const void* x, int64_t ldx,
                                                const int32_t* w_exponent, const int8_t* w_high, const int8_t* w_middle,
                                                const int8_t* w_low, int64_t ldw, int32_t m, int32_t n, int32_t k,
                                                int32_t wide, int32_t slices, int32_t ranks);
// acc[m,n] += the dots of bfloat16 rows a[m,k] with rows b[n,k] (float32 where wide, else bfloat16), chunk by chunk;
// bfloat16 is cut into two slices, float32 into three. `chunk` is at most 512.
KF_MICROKERNEL int32_t kf_rows_dot_accumulate(float* acc, int64_t ld_acc, const uint16_t* a, int64_t lda, const void* b,
                                              int64_t ldb, int32_t m, int32_t n, int32_t k, int32_t chunk,
                                              int32_t wide);

// Residual streams, element (j, c) of a token at x[j * stride + c]: out[k] = gate[k] * y + R(n) over j of m[j, k] *
// x[j], and out = R(n) of gate[j] * x[j], gate[j] of all tokens side by side. Leading dimensions count elements from
// token to token; `all_tokens` decides whether results go past the caches; `channels` is a multiple of 32; `wide`:
// float32, else bfloat16.
KF_MICROKERNEL int32_t kf_mix_streams(void* out, int64_t ld_out, const void* y, int64_t ld_y, const void* x,
                                      int64_t ld_x, const float* gate, int64_t ld_gate, const float* m, int64_t ld_m,
                                      int64_t stride, int32_t tokens, int32_t all_tokens, int32_t channels, int32_t n,
                                      int32_t wide);
KF_MICROKERNEL int32_t kf_collapse_streams(void* out, int64_t ld_out, const void* x, int64_t ld_x, const float* gate,
                                           int64_t ld_gate, int64_t stride, int32_t tokens, int32_t all_tokens,
                                           int32_t channels, int32_t n, int32_t wide);

// mean[c] = the weighted mean of an entry's slots, see kernelforge.ops.compress.pool. kv, gate (float32 where `wide`,
// else bfloat16, `rows` of them) and bias have `ld` elements a row and begin at the first channel wanted; slot j is row
// first + j, its bias row j % ratio, both `series` columns further for each whole ratio in j. At most 32 slots, or a
// multiple of 32 up to 128; `channels` is a multiple of 32.
KF_MICROKERNEL int32_t kf_weighted_mean(float* mean, const void* kv, const void* gate, const float* bias, int64_t ld,
                                        int64_t first, int64_t rows, int32_t ratio, int32_t slots, int32_t series,
                                        int32_t channels, int32_t wide);
// The same where `absent` slots, the first of fewer than 32, have no token; and the largest logits and shares, one over
// the sum of the weights.
KF_MICROKERNEL int32_t kf_known_mean(float* mean, float* top, float* share, const void* kv, const void* gate,
                                     const float* bias, int64_t ld, int64_t first, int64_t rows, int32_t absent,
                                     int32_t ratio, int32_t slots, int32_t series, int32_t channels, int32_t wide);
// An entry from its mean: out (float32 where `wide`, else bfloat16) = the RMS-normalized mean times weight, its last 2
// `pairs` channels turned by the angles of `position`; positions beyond the table [positions, pairs] take its last row.
// The next entry's position is `ratio` further. `channels` is a multiple of 32.
KF_MICROKERNEL int32_t kf_finish_entry(void* out, const float* mean, const float* weight, const float* cos,
                                       const float* sin, int64_t positions, int64_t position, int32_t ratio,
                                       int32_t channels, int32_t pairs, int32_t eps_bits, int32_t wide);
// Gradients of the tokens' kv and gate from `slope`, that of the mean, beside which they lie as kv and gate do; those
// of gate are added to sums [slots, channels].
KF_MICROKERNEL int32_t kf_mean_gradient(float* sums, void* kv_grad, void* gate_grad, const float* top,
                                        const float* share, const float* mean, const float* slope, const void* kv,
                                        const void* gate, const float* bias, int64_t ld, int64_t first, int64_t rows,
                                        int32_t absent, int32_t ratio, int32_t slots, int32_t series, int32_t channels,
                                        int32_t wide);
