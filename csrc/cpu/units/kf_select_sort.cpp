#include "indexer/select.h"
#include "kernelforge_cpu.h"

int32_t kf_select_sort(const int32_t* keys, const int32_t* count, int32_t* order, int32_t capacity, int32_t queries,
                       int32_t size) {
  for (int64_t s = 0; s < queries; ++s) kf::rank_kept(keys + s * capacity, count[s], size, order + s * size);
  return kf::kOk;
}
