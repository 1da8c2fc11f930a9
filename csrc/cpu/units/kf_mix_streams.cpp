#include "kernelforge_cpu.h"
#include "mhc/mix_streams.h"

int32_t kf_mix_streams(void* out, int64_t ld_out, const void* y, int64_t ld_y, const void* x, int64_t ld_x,
                       const float* gate, int64_t ld_gate, const float* m, int64_t ld_m, int64_t stride, int32_t tokens,
                       int32_t all_tokens, int32_t channels, int32_t n, int32_t wide) {
  const bool past_caches = kf::past_caches(all_tokens, ld_out, wide);
  const kf::Streams g{out, ld_out, y, ld_y, x, ld_x, stride, gate, ld_gate, 1, m, ld_m, tokens, channels, past_caches};
  return kf::mix_streams<false>(g, kf::current_isa_for_two_slices(), n, wide);
}
