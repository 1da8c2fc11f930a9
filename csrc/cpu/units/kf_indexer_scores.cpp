#include "indexer/engines.h"
#include "kernelforge_cpu.h"

int32_t kf_indexer_scores(float* scores, int64_t ld_scores, const uint8_t* q, int64_t ldq, const uint8_t* q_scale,
                          int64_t ld_q_scale, const uint8_t* k, int64_t ldk, const uint8_t* k_scale, int64_t ld_k_scale,
                          const float* weights, int64_t ld_weights, const int32_t* visible, int32_t queries,
                          int32_t entries, int32_t heads, int32_t depth) {
  return kf::indexer_scores(kf::current_isa(),
                            kf::IndexerTile{scores, ld_scores, q, ldq, q_scale, ld_q_scale, k, ldk, k_scale, ld_k_scale,
                                            weights, ld_weights, visible, queries, entries, heads, depth});
}
