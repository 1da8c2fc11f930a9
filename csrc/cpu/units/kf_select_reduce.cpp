#include "indexer/select.h"
#include "kernelforge_cpu.h"

int32_t kf_select_reduce(int32_t* keys, int32_t* index, int32_t* count, int32_t* threshold, int32_t capacity,
                         int32_t queries, int32_t topk) {
  for (int64_t s = 0; s < queries; ++s) {
    kf::reduce_kept({keys + s * capacity, index + s * capacity, count + s, threshold + s}, topk);
  }
  return kf::kOk;
}
