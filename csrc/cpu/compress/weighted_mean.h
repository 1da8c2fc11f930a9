// The weighted mean over the slots of an entry, channel by channel; see kernelforge.ops.compress.pool.
//
// Channels are taken in strips, as wide as makes the logits of a strip stay in the first cache beside what streams by:
// rows of a strip lie a power of two apart, so that few of them would be kept by a cache that is not fully associative.
// The prefetchers of CPUs do not follow such columns; a strip to come is asked for while this one is worked on.
#pragma once

#include <algorithm>

#include "core/exp2.h"
#include "core/isa.h"
#include "core/read.h"
#include "core/scalar.h"

namespace kf {
namespace {

constexpr int kMeanStrip = 32;  // channels
constexpr int kMeanLanes = 32;  // of R(n), contract C7
constexpr int kMeanSlots = 4 * kMeanLanes;
constexpr int32_t kLog2E = 0x3FB8AA3B, kRoundToInteger = 0x4B400000, kOne = 0x3F800000;
constexpr int32_t kRecipSeed = 0x7EB21A50, kRecipStep = 0x3FB50700, kBinade = 1 << 23;

struct WeightedMean {
  float* mean;                             // [channels]
  float *top = nullptr, *share = nullptr;  // where wanted: the largest logit, one over the sum of the weights
  const void* kv;
  const void* gate;
  const float* bias;
  int slots, channels;        // channels: a multiple of 32
  int absent = 0;             // slots without a token, the first ones; fewer than 32
  int64_t ahead;              // elements from this entry's tokens to the next one's; 0 where there is none
  int64_t token[kMeanSlots];  // of each slot's element in kv and gate, from their first
  int64_t place[kMeanSlots];  // of its bias
};

// Sums of a strip: of the weights and of the weighted values, by lane.
struct StripSums {
  alignas(64) float weight[kMeanLanes][kMeanStrip], value[kMeanLanes][kMeanStrip];
};

// The additions of R(slots) over lanes, by halves: lane `from` is added to lane `to`.
struct LaneFolds {
  int8_t to[kMeanLanes], from[kMeanLanes];
  int count = 0;

  explicit LaneFolds(int lanes) {
    const auto fold = [this](int a, int b) { to[count] = int8_t(a), from[count++] = int8_t(b); };
    if (lanes == 4) {
      fold(0, 1);
      fold(2, 3);
      fold(0, 2);
      return;
    }
    for (int width = kMeanLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width && lane + width < lanes; ++lane) fold(lane, lane + width);
      lanes = std::min(lanes, width);
    }
  }
};

// 2^x for -50 <= x <= 0, else +0; NaN for NaN.
KF_INLINE float weight_of(float x) {
  const float shifted = x + kf_f(kRoundToInteger), r = x - (shifted - kf_f(kRoundToInteger));
  const float power = exp2_of_fraction(r) * kf_f(int32_t(uint32_t(kf_i(shifted)) << 23) + kOne);
  return x < -50.0f ? 0.0f : power;
}

KF_INLINE float share_of(float total) {
  const int32_t seed = kRecipSeed - kf_i(total);
  const float y = kf_f(seed + kBinade) * (kf_f(kRecipStep) - total * kf_f(seed));
  return y + y * (1.0f - total * y);
}

template <class T>
void weighted_mean_portable(const WeightedMean& g) {
  const T *kv = static_cast<const T*>(g.kv), *gate = static_cast<const T*>(g.gate);
  const LaneFolds folds(std::min(g.slots, kMeanLanes));
  for (int c = 0; c < g.channels; c += kMeanStrip) {
    float logits[kMeanSlots][kMeanStrip], top[kMeanStrip];
    StripSums sums;
    for (int j = g.absent; j < g.slots; ++j) {
      for (int i = 0; i < kMeanStrip; ++i) {
        const float z = read_value(gate[g.token[j] + c + i]) + read_value(g.bias[g.place[j] + c + i]);
        logits[j][i] = z;
        top[i] = j == g.absent || z > top[i] ? z : top[i];
      }
    }
    for (int j = 0; j < g.absent; ++j) {
      for (int i = 0; i < kMeanStrip; ++i) sums.weight[j][i] = sums.value[j][i] = 0.0f;
    }
    for (int j = g.absent; j < g.slots; ++j) {
      float *weights = sums.weight[j % kMeanLanes], *values = sums.value[j % kMeanLanes];
      for (int i = 0; i < kMeanStrip; ++i) {
        const float p = weight_of((logits[j][i] - top[i]) * kf_f(kLog2E));
        const float v = read_value(kv[g.token[j] + c + i]);
        const float t = v == 0.0f ? 0.0f : v * p;
        weights[i] = j < kMeanLanes ? p : weights[i] + p;
        values[i] = j < kMeanLanes ? t : values[i] + t;
      }
    }
    for (int f = 0; f < folds.count; ++f) {
      const int to = folds.to[f], from = folds.from[f];
      for (int i = 0; i < kMeanStrip; ++i) sums.weight[to][i] += sums.weight[from][i];
      for (int i = 0; i < kMeanStrip; ++i) sums.value[to][i] += sums.value[from][i];
    }
    for (int i = 0; i < kMeanStrip; ++i) {
      const float share = share_of(sums.weight[0][i]);
      g.mean[c + i] = read_value(read_value(sums.value[0][i]) * share);
      if (g.top != nullptr) g.top[c + i] = top[i], g.share[c + i] = share;
    }
  }
}

// Where to look for what an entry's strip will need, from its first channel on: `strips` further on, or in the next
// entry.
KF_INLINE int64_t strip_ahead(const WeightedMean& g, int c, int strips) {
  const int next = c + strips * kMeanStrip;
  return next < g.channels ? next : g.ahead + next - g.channels;
}

// Asks the second cache for a strip of a row.
template <class T>
KF_INLINE void ask_for(const T* at) {
#pragma GCC unroll 2
  for (int i = 0; i < kMeanStrip; i += 64 / sizeof(T)) __builtin_prefetch(at + i, 0, 2);
}

}  // namespace
}  // namespace kf

// The same step of n chains side by side.
#define KF_EACH _Pragma("GCC unroll 8") for (int i = 0; i < n; ++i)
#define KF_EACH_OF(x, value) \
  KF_EACH x[i] = value;      \
  KF_EACH asm volatile("" : "+v"(x[i]))

#include "compress/weighted_mean_256.h"
#include "compress/weighted_mean_512.h"

namespace kf {
namespace {

// Where the tokens of slots are: of an entry that begins in row `first`, `ld` elements to a row, `series` columns from
// one series to the next.
template <class G>
void place_slots(G& g, int64_t ld, int64_t first, int32_t ratio, int32_t series) {
  for (int j = 0; j < g.slots; ++j) {
    const int64_t column = j / ratio * int64_t(series);
    g.token[j] = (first + j) * ld + column;
    g.place[j] = j % ratio * ld + column;
  }
}

// Slots without a token only where there are no more than lanes.
KF_INLINE bool are_slots(int slots, int absent) {
  const bool counts = slots > 0 && (slots <= kMeanLanes || slots % kMeanLanes == 0) && slots <= kMeanSlots;
  return counts && absent >= 0 && (absent == 0 || (absent < slots && slots < kMeanLanes));
}

inline int weighted_mean(const WeightedMean& g, bool wide) {
  const Isa isa = current_isa();
  if (isa == Isa::kMissing) return kIsaMissing;
#if defined(KF_X86)
  if (isa >= Isa::kAvx512Bf16) {
    wide ? weighted_mean_512<float>(g) : weighted_mean_512<uint16_t>(g);
    return kOk;
  }
  if (isa == Isa::kAvx2) {
    wide ? weighted_mean_256<float>(g) : weighted_mean_256<uint16_t>(g);
    return kOk;
  }
#endif
  wide ? weighted_mean_portable<float>(g) : weighted_mean_portable<uint16_t>(g);
  return kOk;
}

}  // namespace
}  // namespace kf
