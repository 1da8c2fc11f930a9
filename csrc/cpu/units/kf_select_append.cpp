#include "indexer/select.h"
#include "kernelforge_cpu.h"

int32_t kf_select_append(int32_t* keys, int32_t* index, int32_t* count, int32_t* threshold, int32_t capacity,
                         const float* scores, const int32_t* visible, int32_t first, int32_t queries, int32_t entries,
                         int32_t topk) {
  const kf::Isa isa = kf::current_isa();
  if (isa == kf::Isa::kMissing) return kf::kIsaMissing;
  for (int64_t s = 0; s < queries; ++s) {
    const kf::Kept kept{keys + s * capacity, index + s * capacity, count + s, threshold + s};
    const int seen = visible[s] < entries ? visible[s] : entries;
    count[s] = kf::append_scores(isa, kept, scores + s * entries, seen, first);
    if (count[s] > capacity - entries) kf::reduce_kept(kept, topk);
  }
  return kf::kOk;
}
