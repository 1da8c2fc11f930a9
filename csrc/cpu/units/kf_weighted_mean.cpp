#include "compress/weighted_mean.h"
#include "kernelforge_cpu.h"

int32_t kf_weighted_mean(float* mean, const void* kv, const void* gate, const float* bias, int64_t ld, int64_t first,
                         int64_t rows, int32_t ratio, int32_t slots, int32_t series, int32_t channels, int32_t wide) {
  const bool inside = first >= 0 && first + slots <= rows;
  if (!kf::are_slots(slots, 0) || !inside || ratio <= 0 || channels % kf::kMeanStrip != 0) return kf::kBadArgument;
  kf::WeightedMean g;  // not {}: thousands of calls need few of the places for slots
  g.mean = mean, g.kv = kv, g.gate = gate, g.bias = bias, g.slots = slots, g.channels = channels;
  g.ahead = first + ratio + slots <= rows ? ratio * ld : 0;
  kf::place_slots(g, ld, first, ratio, series);
  return kf::weighted_mean(g, wide);
}
