#include "compress/finish_entry.h"
#include "kernelforge_cpu.h"

int32_t kf_finish_entry(void* out, const float* mean, const float* weight, const float* cos, const float* sin,
                        int64_t positions, int64_t position, int32_t ratio, int32_t channels, int32_t pairs,
                        int32_t eps_bits, int32_t wide) {
  if (positions < 1 || position < 0 || channels % kf::kRowLanes != 0 || pairs < 1 || 2 * pairs > channels) {
    return kf::kBadArgument;
  }
  const kf::Isa isa = kf::current_isa();
  if (isa == kf::Isa::kMissing) return kf::kIsaMissing;
  const int64_t row = std::min(position, positions - 1), next = std::min(position + ratio, positions - 1);
  kf::Entry g;
  g.out = out, g.mean = mean, g.weight = weight;
  g.cos = cos + row * pairs, g.sin = sin + row * pairs, g.ahead = (next - row) * pairs;
  g.channels = channels, g.pairs = pairs, g.eps = kf_f(eps_bits);
#if defined(KF_X86)
  if (isa >= kf::Isa::kAvx512Bf16 && pairs % 8 == 0) {
    wide ? kf::finish_entry_512<float>(g) : kf::finish_entry_512<uint16_t>(g);
    return kf::kOk;
  }
  if (isa >= kf::Isa::kAvx2 && pairs % 4 == 0) {
    wide ? kf::finish_entry_256<float>(g) : kf::finish_entry_256<uint16_t>(g);
    return kf::kOk;
  }
#endif
  wide ? kf::finish_entry_portable<float>(g) : kf::finish_entry_portable<uint16_t>(g);
  return kf::kOk;
}
