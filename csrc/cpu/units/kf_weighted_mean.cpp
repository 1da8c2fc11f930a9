#include "kf_weighted_mean.h"

#include "kernelforge_cpu.h"

int32_t kf_weighted_mean(float* mean, const void* kv, const void* gate, const float* bias, int64_t ld, int64_t first,
                         int64_t rows, int32_t ratio, int32_t slots, int32_t series, int32_t channels, int32_t wide) {
  const bool counts = slots > 0 && (slots <= kf::kMeanLanes || slots % kf::kMeanLanes == 0) && slots <= kf::kMeanSlots;
  const bool inside = first >= 0 && first + slots <= rows;
  if (!counts || !inside || ratio <= 0 || channels % kf::kMeanStrip != 0) return kf::kBadArgument;
  const kf::Isa isa = kf::current_isa();
  if (isa == kf::Isa::kMissing) return kf::kIsaMissing;
  kf::WeightedMean g;  // not {}: thousands of calls need few of the places for slots
  g.mean = mean, g.kv = kv, g.gate = gate, g.bias = bias, g.slots = slots, g.channels = channels;
  g.ahead = first + ratio + slots <= rows ? ratio * ld : 0;
  for (int j = 0; j < slots; ++j) {
    const int64_t column = j / ratio * int64_t(series);
    g.token[j] = (first + j) * ld + column;
    g.place[j] = j % ratio * ld + column;
  }
#if defined(KF_X86)
  if (isa >= kf::Isa::kAvx512Bf16) {
    wide ? kf::weighted_mean_512<float>(g) : kf::weighted_mean_512<uint16_t>(g);
    return kf::kOk;
  }
#endif
  wide ? kf::weighted_mean_portable<float>(g) : kf::weighted_mean_portable<uint16_t>(g);
  return kf::kOk;
}
