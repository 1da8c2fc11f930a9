#include "compress/mean_gradient.h"
#include "kernelforge_cpu.h"

int32_t kf_mean_gradient(float* sums, void* kv_grad, void* gate_grad, const float* top, const float* share,
                         const float* mean, const float* slope, const void* kv, const void* gate, const float* bias,
                         int64_t ld, int64_t first, int64_t rows, int32_t absent, int32_t ratio, int32_t slots,
                         int32_t series, int32_t channels, int32_t wide) {
  const bool inside = first + absent >= 0 && first + slots <= rows;
  if (!kf::are_slots(slots, absent) || !inside || ratio <= 0 || channels % kf::kMeanStrip != 0) return kf::kBadArgument;
  const kf::Isa isa = kf::current_isa();
  if (isa == kf::Isa::kMissing) return kf::kIsaMissing;
  kf::MeanGradient g;
  g.sums = sums, g.kv_grad = kv_grad, g.gate_grad = gate_grad;
  g.top = top, g.share = share, g.mean = mean, g.slope = slope, g.kv = kv, g.gate = gate, g.bias = bias;
  g.slots = slots, g.channels = channels, g.absent = absent;
  kf::place_slots(g, ld, first, ratio, series);
#if defined(KF_X86)
  if (isa >= kf::Isa::kAvx512Bf16) {
    wide ? kf::mean_gradient_512<float>(g) : kf::mean_gradient_512<uint16_t>(g);
    return kf::kOk;
  }
  if (isa == kf::Isa::kAvx2) {
    wide ? kf::mean_gradient_256<float>(g) : kf::mean_gradient_256<uint16_t>(g);
    return kf::kOk;
  }
#endif
  wide ? kf::mean_gradient_portable<float>(g) : kf::mean_gradient_portable<uint16_t>(g);
  return kf::kOk;
}
