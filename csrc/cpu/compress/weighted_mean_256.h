// The weighted mean over the slots of an entry with AVX2; included by compress/weighted_mean.h.
#pragma once

#include "core/values_256.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

// Weights of n logits, from their distance to the largest one, in place; step by step for all of them. 2^n is made of
// the integer that the rounding leaves in the lowest bits: of n - 1, with the bias of an exponent added, even as a
// whole so that halves are rounded as without. The polynomial is twice as large for that, and has the same digits.
template <int n>
KF_INLINE void weigh(__m256 (&p)[n]) {
  constexpr int32_t kRound = kRoundToInteger + 126;
  __m256 power[n], r[n], kept[n];
  KF_EACH p[i] = _mm256_mul_ps(p[i], constant8(kLog2E));
  KF_EACH power[i] = _mm256_add_ps(p[i], constant8(kRound));
  KF_EACH r[i] = _mm256_sub_ps(p[i], _mm256_sub_ps(power[i], constant8(kRound)));
  KF_EACH kept[i] = _mm256_cmp_ps(p[i], _mm256_set1_ps(-50.0f), _CMP_NLT_UQ);
  KF_EACH power[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(power[i]), 23));
  KF_EACH p[i] = constant8(kExp2[0] + kBinade);
#pragma GCC unroll 5
  for (int k = 1; k < 6; ++k) {
    KF_EACH p[i] = _mm256_mul_ps(p[i], r[i]);
    KF_EACH p[i] = _mm256_add_ps(p[i], constant8(kExp2[k] + kBinade));
  }
  KF_EACH p[i] = _mm256_mul_ps(r[i], p[i]);
  KF_EACH p[i] = _mm256_fmadd_ps(r[i], _mm256_set1_ps(2.0f), p[i]);  // 2 r is exact
  KF_EACH p[i] = _mm256_add_ps(_mm256_set1_ps(2.0f), p[i]);
  KF_EACH p[i] = _mm256_and_ps(_mm256_mul_ps(p[i], power[i]), kept[i]);
}

// A logit of 8 channels and what is to be known of them. With kRead of gate and bias as they are read. Without, as they
// are, and `least` tells whether that makes a difference: only a logit other than 0 that is nearer to it than 2^-24 can
// have a part that is read as +0 and differ from the other part.
template <bool kRead, class T>
KF_INLINE __m256 logit8(const T* gate, const float* bias, __m256& top, __m256i& least) {
  const __m256 x = load8(gate), y = _mm256_loadu_ps(bias);
  const __m256 z = kRead ? _mm256_add_ps(read8(x), read8(y)) : _mm256_add_ps(x, y);
  top = _mm256_max_ps(z, top);
  const __m256i bits = _mm256_castps_si256(z);
  if constexpr (!kRead) least = _mm256_min_epu32(least, _mm256_add_epi32(bits, bits));
  return z;
}
KF_INLINE bool tells_apart(__m256i least) {
  const __m256i enough = _mm256_set1_epi32(2 * ((127 - 24) << 23));
  return _mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_max_epu32(least, enough), least)) == -1;
}

constexpr int kStripParts = kMeanStrip / 8;

// What is known of a strip's logits.
struct StripLogits8 {
  __m256 top[kStripParts];
  __m256i least = _mm256_set1_epi32(-1);
  KF_INLINE StripLogits8() {
    for (__m256& x : top) x = constant8(int32_t(0xFF800000));
  }
};

template <bool kRead, class T>
KF_INLINE void logits_of_slot(const WeightedMean& g, const T* gate, int c, int j, float* logits, StripLogits8& known) {
#pragma GCC unroll 4
  for (int part = 0; part < kStripParts; ++part) {
    const int column = c + part * 8;
    const T* const at = gate + g.token[j] + column;
    _mm256_store_ps(logits + part * 8, logit8<kRead>(at, g.bias + g.place[j] + column, known.top[part], known.least));
  }
}
template <bool kRead, class T>
KF_INLINE StripLogits8 logits_of_strip8(const WeightedMean& g, const T* gate, int c, float (*logits)[kMeanStrip]) {
  StripLogits8 known;
  for (int j = 0; j < g.slots; ++j) logits_of_slot<kRead>(g, gate, c, j, logits[j], known);
  return known;
}

// R of 32 lanes, contract C7, of 8 channels.
template <int kWidth>
KF_INLINE __m256 fold_256(const float* lane) {
  if constexpr (kWidth == kMeanLanes) {
    return _mm256_load_ps(lane);
  } else {
    return _mm256_add_ps(fold_256<2 * kWidth>(lane), fold_256<2 * kWidth>(lane + kWidth * kMeanStrip));
  }
}

// The mean of 8 channels from c on, and what else is wanted of them.
KF_INLINE void finish8(const WeightedMean& g, int c, __m256 top, __m256 weight, __m256 value) {
  const __m256i seed = _mm256_sub_epi32(_mm256_set1_epi32(kRecipSeed), _mm256_castps_si256(weight));
  const __m256 error = _mm256_sub_ps(constant8(kRecipStep), _mm256_mul_ps(weight, _mm256_castsi256_ps(seed)));
  const __m256 y = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_add_epi32(seed, _mm256_set1_epi32(kBinade))), error);
  const __m256 share = _mm256_add_ps(y, _mm256_mul_ps(y, _mm256_sub_ps(constant8(kOne), _mm256_mul_ps(weight, y))));
  _mm256_storeu_ps(g.mean + c, read8(_mm256_mul_ps(read8(value), share)));
  if (g.top == nullptr) return;
  _mm256_storeu_ps(g.top + c, top);
  _mm256_storeu_ps(g.share + c, share);
}

// Sums of a strip with kPerLane slots to each of 32 lanes. The logits of the strip behind it are made meanwhile, place
// by place: they wait for memory, these for arithmetic.
template <int kPerLane, bool kLast, class T>
KF_INLINE StripLogits8 sum_strip(const WeightedMean& g, const T* kv, const T* gate, int c,
                                 const __m256 (&top)[kStripParts], float (*logits)[kMeanStrip], StripSums& sums) {
  constexpr int kParts = std::max(4 / kPerLane, 1), kChains = kParts * kPerLane;  // what the registers hold
  const int64_t kv_ahead = strip_ahead(g, c, 1), gate_ahead = strip_ahead(g, c, 2);
  StripLogits8 known;
  for (int lane = 0; lane < kMeanLanes; ++lane) {
#pragma GCC unroll 4
    for (int at = 0; at < kMeanStrip; at += 8 * kParts) {
      __m256 p[kChains], t[kChains];
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i) {
        const int j = lane + i / kParts * kMeanLanes, column = at + i % kParts * 8;
        p[i] = _mm256_sub_ps(_mm256_load_ps(logits[j] + column), top[column / 8]);
      }
      weigh(p);
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i) {
        const int j = lane + i / kParts * kMeanLanes, column = at + i % kParts * 8;
        t[i] = _mm256_mul_ps(read8(load8(kv + g.token[j] + c + column)), p[i]);
      }
#pragma GCC unroll 4
      for (int i = kParts; i < kChains; ++i) {
        p[i % kParts] = _mm256_add_ps(p[i % kParts], p[i]);
        t[i % kParts] = _mm256_add_ps(t[i % kParts], t[i]);
      }
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        _mm256_store_ps(&sums.weight[lane][at + part * 8], p[part]);
        _mm256_store_ps(&sums.value[lane][at + part * 8], t[part]);
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < kPerLane; ++k) {
      const int j = lane + k * kMeanLanes;
      if constexpr (!kLast) logits_of_slot<false>(g, gate, c + kMeanStrip, j, logits[j], known);
      ask_for(kv + g.token[j] + kv_ahead);
      ask_for(gate + g.token[j] + gate_ahead);
    }
  }
  return known;
}

template <int kPerLane, class T>
void mean_of_lanes_256(const WeightedMean& g) {
  const T *kv = static_cast<const T*>(g.kv), *gate = static_cast<const T*>(g.gate);
  alignas(64) float logits[kMeanSlots][kMeanStrip];
  StripSums sums;
  StripLogits8 known = logits_of_strip8<false>(g, gate, 0, logits);
  for (int c = 0; c < g.channels; c += kMeanStrip) {
    if (!tells_apart(known.least)) known = logits_of_strip8<true>(g, gate, c, logits);
    const StripLogits8 these = known;
    known = c + kMeanStrip < g.channels ? sum_strip<kPerLane, false>(g, kv, gate, c, these.top, logits, sums)
                                        : sum_strip<kPerLane, true>(g, kv, gate, c, these.top, logits, sums);
    for (int i = 0; i < kMeanStrip; i += 8) {
      finish8(g, c + i, these.top[i / 8], fold_256<1>(&sums.weight[0][i]), fold_256<1>(&sums.value[0][i]));
    }
  }
}

// Weights and terms of four slots of 8 channels, summed as R of them: of slots j, j + 4, j + 2, j + 6 here.
template <class T>
KF_INLINE void four_of_eight(const WeightedMean& g, const T* kv, int j, const __m256* z, __m256 top, __m256& weight,
                             __m256& value) {
  constexpr int n = 4, kSlot[n] = {0, 4, 2, 6};
  __m256 p[n], t[n];
  KF_EACH p[i] = _mm256_sub_ps(z[j + kSlot[i]], top);
  weigh(p);
  KF_EACH t[i] = _mm256_mul_ps(read8(load8(kv + g.token[j + kSlot[i]])), p[i]);
  weight = _mm256_add_ps(_mm256_add_ps(p[0], p[1]), _mm256_add_ps(p[2], p[3]));
  value = _mm256_add_ps(_mm256_add_ps(t[0], t[1]), _mm256_add_ps(t[2], t[3]));
}

// Eight slots, each a lane of its own.
template <bool kRead, class T>
KF_INLINE bool mean_of_eight_256(const WeightedMean& g, const T* kv, const T* gate, int c) {
  __m256 z[8], top = constant8(int32_t(0xFF800000)), weight[2], value[2];
  __m256i least = _mm256_set1_epi32(-1);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) z[j] = logit8<kRead>(gate + g.token[j] + c, g.bias + g.place[j] + c, top, least);
  if (!kRead && !tells_apart(least)) return false;
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) four_of_eight(g, kv + c, j, z, top, weight[j], value[j]);
  finish8(g, c, top, _mm256_add_ps(weight[0], weight[1]), _mm256_add_ps(value[0], value[1]));
  return true;
}
template <class T>
void means_of_eight_256(const WeightedMean& g) {
  const T *kv = static_cast<const T*>(g.kv), *gate = static_cast<const T*>(g.gate);
  constexpr int kLook = 8;  // strips to be worked on while memory answers
  for (int c = 0; c < g.channels; c += kMeanStrip) {
    const int64_t ahead = strip_ahead(g, c, std::min(kLook, g.channels / kMeanStrip));
#pragma GCC unroll 4
    for (int part = 0; part < kStripParts; ++part) {
      const int column = c + part * 8;
      if (!mean_of_eight_256<false>(g, kv, gate, column)) mean_of_eight_256<true>(g, kv, gate, column);
#pragma GCC unroll 2
      for (int j = part * 2; j < part * 2 + 2; ++j) {
        ask_for(kv + g.token[j] + ahead);
        ask_for(gate + g.token[j] + ahead);
      }
    }
  }
}

// Any number of slots below that of lanes, some of them perhaps without a token.
template <class T>
void mean_of_few_256(const WeightedMean& g) {
  const T *kv = static_cast<const T*>(g.kv), *gate = static_cast<const T*>(g.gate);
  const LaneFolds folds(g.slots);
  for (int c = 0; c < g.channels; c += 8) {
    __m256 p[kMeanLanes], t[kMeanLanes], top = constant8(int32_t(0xFF800000));
    __m256i least;
    for (int j = 0; j < g.absent; ++j) p[j] = t[j] = _mm256_setzero_ps();
    for (int j = g.absent; j < g.slots; ++j) {
      p[j] = logit8<true>(gate + g.token[j] + c, g.bias + g.place[j] + c, top, least);
    }
    for (int j = g.absent; j < g.slots; ++j) {
      __m256 one[1] = {_mm256_sub_ps(p[j], top)};
      weigh(one);
      p[j] = one[0];
      t[j] = _mm256_mul_ps(read8(load8(kv + g.token[j] + c)), p[j]);
    }
    for (int f = 0; f < folds.count; ++f) {
      const int to = folds.to[f], from = folds.from[f];
      p[to] = _mm256_add_ps(p[to], p[from]);
      t[to] = _mm256_add_ps(t[to], t[from]);
    }
    finish8(g, c, top, p[0], t[0]);
  }
}

template <class T>
void weighted_mean_256(const WeightedMean& g) {
  if (g.slots == 8 && g.absent == 0) return means_of_eight_256<T>(g);
  if (g.slots < kMeanLanes) return mean_of_few_256<T>(g);
  if (g.slots == kMeanLanes) return mean_of_lanes_256<1, T>(g);
  if (g.slots == 2 * kMeanLanes) return mean_of_lanes_256<2, T>(g);
  if (g.slots == 3 * kMeanLanes) return mean_of_lanes_256<3, T>(g);
  return mean_of_lanes_256<4, T>(g);
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
