// The weighted mean over the slots of an entry, channel by channel; see kernelforge.ops.compress.pool.
//
// Channels are taken in strips, as wide as makes the logits of a strip stay in the first cache beside what streams by:
// rows of a strip lie a power of two apart, so that few of them would be kept by a cache that is not fully associative.
// The prefetchers of CPUs do not follow such columns; a strip to come is asked for while this one is worked on.
#pragma once

#include <algorithm>

#include "kf_exp2.h"
#include "kf_isa.h"
#include "kf_read.h"
#include "kf_scalar.h"

namespace kf {
namespace {

constexpr int kMeanStrip = 32;  // channels
constexpr int kMeanLanes = 32;  // of R(n), contract C7
constexpr int kMeanSlots = 4 * kMeanLanes;
constexpr int kMeanLook = 64;  // slots of a strip to be worked on while memory answers
constexpr int32_t kLog2E = 0x3FB8AA3B, kRoundToInteger = 0x4B400000, kOne = 0x3F800000;
constexpr int32_t kRecipSeed = 0x7EB21A50, kRecipStep = 0x3FB50700, kBinade = 1 << 23;

struct WeightedMean {
  float* mean;  // [channels]
  const void* kv;
  const void* gate;
  const float* bias;
  int slots, channels;        // channels: a multiple of 32
  int64_t ahead;              // elements from this entry's tokens to the next one's; 0 where there is none
  int64_t token[kMeanSlots];  // of each slot's element in kv and gate, from their first
  int64_t place[kMeanSlots];  // of its bias
};

// Sums of a strip: of the weights and of the weighted values, by lane.
struct StripSums {
  alignas(64) float weight[kMeanLanes][kMeanStrip], value[kMeanLanes][kMeanStrip];
};

// R(slots) from the lanes, by halves, in place; `fold(to, from)` adds one lane to another.
template <class Fold>
KF_INLINE void fold_lanes(int lanes, Fold fold) {
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
  for (int c = 0; c < g.channels; c += kMeanStrip) {
    float logits[kMeanSlots][kMeanStrip], top[kMeanStrip];
    StripSums sums;
    for (int j = 0; j < g.slots; ++j) {
      for (int i = 0; i < kMeanStrip; ++i) {
        const float z = read_value(gate[g.token[j] + c + i]) + read_value(g.bias[g.place[j] + c + i]);
        logits[j][i] = z;
        top[i] = j == 0 || z > top[i] ? z : top[i];
      }
    }
    for (int j = 0; j < g.slots; ++j) {
      float *weights = sums.weight[j % kMeanLanes], *values = sums.value[j % kMeanLanes];
      for (int i = 0; i < kMeanStrip; ++i) {
        const float p = weight_of((logits[j][i] - top[i]) * kf_f(kLog2E));
        const float v = read_value(kv[g.token[j] + c + i]);
        const float t = v == 0.0f ? 0.0f : v * p;
        weights[i] = j < kMeanLanes ? p : weights[i] + p;
        values[i] = j < kMeanLanes ? t : values[i] + t;
      }
    }
    fold_lanes(std::min(g.slots, kMeanLanes), [&](int to, int from) KF_INLINE_LAMBDA {
      for (int i = 0; i < kMeanStrip; ++i) sums.weight[to][i] += sums.weight[from][i];
      for (int i = 0; i < kMeanStrip; ++i) sums.value[to][i] += sums.value[from][i];
    });
    for (int i = 0; i < kMeanStrip; ++i) {
      g.mean[c + i] = read_value(read_value(sums.value[0][i]) * share_of(sums.weight[0][i]));
    }
  }
}

}  // namespace
}  // namespace kf

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace kf {
namespace {

KF_INLINE __m512 constant(int32_t bits) { return _mm512_castsi512_ps(_mm512_set1_epi32(bits)); }

KF_INLINE __mmask16 is_read(__m512 x) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
  return _mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(kSmallestRead));
}
KF_INLINE __m512 read16(__m512 x) { return _mm512_maskz_mov_ps(is_read(x), x); }

// 16 elements, and which of them are not read as +0.
struct Elements {
  __m512 value;
  __mmask16 kept;
};

KF_INLINE Elements load16(const float* from) {
  const __m512 value = _mm512_loadu_ps(from);
  return {value, is_read(value)};
}
KF_INLINE Elements load16(const uint16_t* from) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
  const __m256i magnitude = _mm256_and_si256(words, _mm256_set1_epi16(0x7FFF));
  return {value, _mm256_cmpge_epu16_mask(magnitude, _mm256_set1_epi16(kSmallestRead >> 16))};
}

// The sum of both as they are read; neither is -0 then.
KF_INLINE __m512 logit16(Elements gate, __m512 bias) {
  const __m512 read = _mm512_maskz_mov_ps(gate.kept, gate.value);
  return _mm512_mask_add_ps(read, is_read(bias), read, bias);
}

// Weights of n logits and their terms. Step by step for all of them: a chain of dependent steps is longer than what a
// core looks ahead.
template <int n, class T>
KF_INLINE void weigh(const float* const (&logit)[n], const T* const (&kv)[n], __m512 top, __m512* p, __m512* t) {
  __m512 x[n], whole[n], r[n], q[n];
#define KF_EACH _Pragma("GCC unroll 8") for (int i = 0; i < n; ++i)
  KF_EACH x[i] = _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(logit[i]), top), constant(kLog2E));
  KF_EACH whole[i] = _mm512_roundscale_ps(x[i], _MM_FROUND_TO_NEAREST_INT);
  KF_EACH r[i] = _mm512_sub_ps(x[i], whole[i]);
  KF_EACH q[i] = constant(kExp2[0]);
#pragma GCC unroll 5
  for (int k = 1; k < 6; ++k) {
    KF_EACH q[i] = _mm512_add_ps(_mm512_mul_ps(q[i], r[i]), constant(kExp2[k]));
  }
  KF_EACH q[i] = _mm512_add_ps(r[i], _mm512_mul_ps(r[i], q[i]));
  KF_EACH q[i] = _mm512_add_ps(constant(kOne), q[i]);
  KF_EACH p[i] = _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x[i], _mm512_set1_ps(-50.0f), _CMP_NLT_UQ), q[i], whole[i]);
  KF_EACH {
    const Elements element = load16(kv[i]);
    t[i] = _mm512_maskz_mul_ps(element.kept, element.value, p[i]);
  }
#undef KF_EACH
}

template <class T>
KF_INLINE void ask_for(const T* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
}

// Channels `column` to column + 16 of a strip: kChain slots from `first` on, those of one lane, summed, or neighbours,
// each a lane of its own.
template <int kChain, bool kOneLane, class T>
KF_INLINE void sum_slots(const WeightedMean& g, const float (*logits)[kMeanStrip], const T* kv, int first, int column,
                         __m512 top, StripSums& sums) {
  constexpr int step = kOneLane ? kMeanLanes : 1;
  const float* logit[kChain];
  const T* from[kChain];
#pragma GCC unroll 8
  for (int k = 0; k < kChain; ++k) {
    const int j = first + k * step;
    logit[k] = &logits[j][column];
    from[k] = kv + g.token[j] + column;
  }
  __m512 p[kChain], t[kChain];
  weigh<kChain>(logit, from, top, p, t);
  if (!kOneLane) {
#pragma GCC unroll 8
    for (int k = 0; k < kChain; ++k) {
      _mm512_store_ps(&sums.weight[first + k][column], p[k]);
      _mm512_store_ps(&sums.value[first + k][column], t[k]);
    }
    return;
  }
#pragma GCC unroll 8
  for (int k = 1; k < kChain; ++k) {
    p[0] = _mm512_add_ps(p[0], p[k]);
    t[0] = _mm512_add_ps(t[0], t[k]);
  }
  _mm512_store_ps(&sums.weight[first][column], p[0]);
  _mm512_store_ps(&sums.value[first][column], t[0]);
}

// kPerLane slots to each of 32 lanes, or with 0 fewer slots than lanes.
template <int kPerLane, class T>
void weighted_mean_512(const WeightedMean& g) {
  const int lanes = std::min(g.slots, kMeanLanes);
  const int look = std::max(std::min(kMeanLook / g.slots, g.channels / kMeanStrip), 1);
  alignas(64) float logits[kMeanSlots][kMeanStrip];
  StripSums sums;
  for (int c = 0; c < g.channels; c += kMeanStrip) {
    const T *kv = static_cast<const T*>(g.kv) + c, *gate = static_cast<const T*>(g.gate) + c;
    const int next = c + look * kMeanStrip;
    const int64_t ahead = next < g.channels ? next - c : g.ahead + next - c - g.channels;
    const auto ask_for_slot = [&](int j) KF_INLINE_LAMBDA {
#pragma GCC unroll 2
      for (int i = 0; i < kMeanStrip; i += 64 / sizeof(T)) {
        ask_for(kv + g.token[j] + ahead + i);
        ask_for(gate + g.token[j] + ahead + i);
      }
    };
    __m512 top[2] = {constant(int32_t(0xFF800000)), constant(int32_t(0xFF800000))};
    for (int j = 0; j < g.slots; ++j) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const Elements element = load16(gate + g.token[j] + half * 16);
        const __m512 bias = _mm512_loadu_ps(g.bias + g.place[j] + c + half * 16);
        const __m512 z = logit16(element, bias);
        _mm512_store_ps(&logits[j][half * 16], z);
        top[half] = _mm512_max_ps(z, top[half]);
      }
    }
    if constexpr (kPerLane > 0) {
      for (int lane = 0; lane < kMeanLanes; ++lane) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          sum_slots<kPerLane, true>(g, logits, kv, lane, half * 16, top[half], sums);
        }
#pragma GCC unroll 4
        for (int k = 0; k < kPerLane; ++k) ask_for_slot(lane + k * kMeanLanes);
      }
    } else {
      int j = 0;
      for (; j + 4 <= lanes; j += 4) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) sum_slots<4, false>(g, logits, kv, j, half * 16, top[half], sums);
        for (int k = 0; k < 4; ++k) ask_for_slot(j + k);
      }
      for (; j < lanes; ++j) {
        for (int half = 0; half < 2; ++half) sum_slots<1, false>(g, logits, kv, j, half * 16, top[half], sums);
        ask_for_slot(j);
      }
    }
    const auto add = [](float* to, const float* from) KF_INLINE_LAMBDA {
#pragma GCC unroll 2
      for (int i = 0; i < kMeanStrip; i += 16) {
        _mm512_store_ps(to + i, _mm512_add_ps(_mm512_load_ps(to + i), _mm512_load_ps(from + i)));
      }
    };
    fold_lanes(lanes, [&](int to, int from) KF_INLINE_LAMBDA {
      add(sums.weight[to], sums.weight[from]);
      add(sums.value[to], sums.value[from]);
    });
    for (int i = 0; i < kMeanStrip; i += 16) {
      const __m512 total = _mm512_load_ps(&sums.weight[0][i]);
      const __m512i seed = _mm512_sub_epi32(_mm512_set1_epi32(kRecipSeed), _mm512_castps_si512(total));
      const __m512 error = _mm512_sub_ps(constant(kRecipStep), _mm512_mul_ps(total, _mm512_castsi512_ps(seed)));
      const __m512 y = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_add_epi32(seed, _mm512_set1_epi32(kBinade))), error);
      const __m512 share = _mm512_add_ps(y, _mm512_mul_ps(y, _mm512_sub_ps(constant(kOne), _mm512_mul_ps(total, y))));
      const __m512 mean = read16(_mm512_mul_ps(read16(_mm512_load_ps(&sums.value[0][i])), share));
      _mm512_storeu_ps(g.mean + c + i, mean);
    }
  }
}

template <class T>
void weighted_mean_512(const WeightedMean& g) {
  if (g.slots < kMeanLanes) return weighted_mean_512<0, T>(g);
  if (g.slots == kMeanLanes) return weighted_mean_512<1, T>(g);
  if (g.slots == 2 * kMeanLanes) return weighted_mean_512<2, T>(g);
  if (g.slots == 3 * kMeanLanes) return weighted_mean_512<3, T>(g);
  return weighted_mean_512<4, T>(g);
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
