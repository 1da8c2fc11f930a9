// The weighted mean over the slots of an entry with AVX-512; included by compress/weighted_mean.h.
#pragma once

#include "core/values_512.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace kf {
namespace {

// Which of them are not read as +0.
KF_INLINE __mmask16 kept16(const float*, __m512 value) { return is_read(value); }
KF_INLINE __mmask16 kept16(const uint16_t* from, __m512) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i magnitude = _mm256_and_si256(words, _mm256_set1_epi16(0x7FFF));
  return _mm256_cmpge_epu16_mask(magnitude, _mm256_set1_epi16(kSmallestReadBits >> 16));
}

// Weights of n logits, from their distance to the largest one, in place. Step by step for all of them, and compilers
// are held to it: a chain of dependent steps is longer than what a core looks ahead.
template <int n>
KF_INLINE void weigh(__m512 (&p)[n]) {
  __m512 whole[n], r[n];
  __mmask16 kept[n];
  KF_EACH_OF(p, _mm512_mul_ps(p[i], constant(kLog2E)));
  KF_EACH kept[i] = _mm512_cmp_ps_mask(p[i], _mm512_set1_ps(-50.0f), _CMP_NLT_UQ);
  KF_EACH_OF(whole, _mm512_roundscale_ps(p[i], _MM_FROUND_TO_NEAREST_INT));
  KF_EACH_OF(r, _mm512_sub_ps(p[i], whole[i]));
  KF_EACH p[i] = constant(kExp2[0]);
#pragma GCC unroll 5
  for (int k = 1; k < 6; ++k) {
    KF_EACH_OF(p, _mm512_mul_ps(p[i], r[i]));
    KF_EACH_OF(p, _mm512_add_ps(p[i], constant(kExp2[k])));
  }
  KF_EACH_OF(p, _mm512_mul_ps(r[i], p[i]));
  KF_EACH_OF(p, _mm512_add_ps(r[i], p[i]));
  KF_EACH_OF(p, _mm512_add_ps(constant(kOne), p[i]));
  KF_EACH p[i] = _mm512_maskz_scalef_ps(kept[i], p[i], whole[i]);
}

// The same, and their terms t.
template <int n, class T>
KF_INLINE void weigh(const T* const (&kv)[n], __m512 (&p)[n], __m512 (&t)[n]) {
  weigh(p);
  KF_EACH {
    const __m512 element = load16(kv[i]);
    t[i] = _mm512_maskz_mul_ps(kept16(kv[i], element), element, p[i]);
  }
}

// A logit of 16 channels and what is to be known of them. With kRead of gate and bias as they are read. Without, as
// they are, and `least` tells whether that makes a difference: only a logit other than 0 that is nearer to it than
// 2^-24 can have a part that is read as +0 and differ from the other part.
template <bool kRead, class T>
KF_INLINE __m512 logit16(const T* gate, const float* bias, __m512& top, __m512i& least) {
  const __m512 x = load16(gate), y = _mm512_loadu_ps(bias);
  const __m512 z = kRead ? _mm512_add_ps(read16(x), read16(y)) : _mm512_add_ps(x, y);
  top = _mm512_max_ps(z, top);
  const __m512i bits = _mm512_castps_si512(z);
  if constexpr (!kRead) least = _mm512_min_epu32(least, _mm512_add_epi32(bits, bits));
  return z;
}
KF_INLINE bool tells_apart(__m512i least) {
  return _mm512_cmplt_epu32_mask(least, _mm512_set1_epi32(2 * ((127 - 24) << 23))) == 0;
}

// What is known of a strip's logits.
struct StripLogits {
  __m512 top[2];
  __m512i least;
  KF_INLINE StripLogits()
      : top{constant(int32_t(0xFF800000)), constant(int32_t(0xFF800000))}, least(_mm512_set1_epi32(-1)) {}
};

template <bool kRead, class T>
KF_INLINE void logits_of_slot(const WeightedMean& g, const T* gate, int c, int j, float* logits, StripLogits& known) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const int column = c + half * 16;
    const T* const at = gate + g.token[j] + column;
    _mm512_store_ps(logits + half * 16, logit16<kRead>(at, g.bias + g.place[j] + column, known.top[half], known.least));
  }
}
template <bool kRead, class T>
KF_INLINE StripLogits logits_of_strip(const WeightedMean& g, const T* gate, int c, float (*logits)[kMeanStrip]) {
  StripLogits known;
  for (int j = 0; j < g.slots; ++j) logits_of_slot<kRead>(g, gate, c, j, logits[j], known);
  return known;
}

// R of 32 lanes, contract C7, of 16 channels.
template <int kWidth>
KF_INLINE __m512 fold_512(const float* lane) {
  if constexpr (kWidth == kMeanLanes) {
    return _mm512_load_ps(lane);
  } else {
    return _mm512_add_ps(fold_512<2 * kWidth>(lane), fold_512<2 * kWidth>(lane + kWidth * kMeanStrip));
  }
}

// The mean of 16 channels from c on, and what else is wanted of them.
KF_INLINE void finish16(const WeightedMean& g, int c, __m512 top, __m512 weight, __m512 value) {
  const __m512i seed = _mm512_sub_epi32(_mm512_set1_epi32(kRecipSeed), _mm512_castps_si512(weight));
  const __m512 error = _mm512_sub_ps(constant(kRecipStep), _mm512_mul_ps(weight, _mm512_castsi512_ps(seed)));
  const __m512 y = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_add_epi32(seed, _mm512_set1_epi32(kBinade))), error);
  const __m512 share = _mm512_add_ps(y, _mm512_mul_ps(y, _mm512_sub_ps(constant(kOne), _mm512_mul_ps(weight, y))));
  _mm512_storeu_ps(g.mean + c, read16(_mm512_mul_ps(read16(value), share)));
  if (g.top == nullptr) return;
  _mm512_storeu_ps(g.top + c, top);
  _mm512_storeu_ps(g.share + c, share);
}

// Sums of a strip with kPerLane slots to each of 32 lanes. The logits of the strip behind it are made meanwhile, place
// by place: they wait for memory, these for arithmetic.
template <int kPerLane, bool kLast, class T>
KF_INLINE StripLogits sum_strip(const WeightedMean& g, const T* kv, const T* gate, int c, const __m512 (&top)[2],
                                float (*logits)[kMeanStrip], StripSums& sums) {
  // float32 needs no instructions to widen it, and four chains with their constants fit the registers: less time than
  // eight, which bfloat16 takes.
  constexpr int kHalves = sizeof(T) == sizeof(float) ? 1 : 2;
  const int64_t kv_ahead = strip_ahead(g, c, 1), gate_ahead = strip_ahead(g, c, 2);
  StripLogits known;
  for (int lane = 0; lane < kMeanLanes; ++lane) {
#pragma GCC unroll 2
    for (int at = 0; at < kMeanStrip; at += 16 * kHalves) {
      __m512 p[kHalves * kPerLane], t[kHalves * kPerLane];
      const T* from[kHalves * kPerLane];
#pragma GCC unroll 8
      for (int i = 0; i < kHalves * kPerLane; ++i) {
        const int j = lane + i / kHalves * kMeanLanes, column = at + i % kHalves * 16;
        p[i] = _mm512_sub_ps(_mm512_load_ps(logits[j] + column), top[column / 16]);
        from[i] = kv + g.token[j] + c + column;
      }
      weigh(from, p, t);
#pragma GCC unroll 8
      for (int i = kHalves; i < kHalves * kPerLane; ++i) {
        p[i % kHalves] = _mm512_add_ps(p[i % kHalves], p[i]);
        t[i % kHalves] = _mm512_add_ps(t[i % kHalves], t[i]);
      }
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        _mm512_store_ps(&sums.weight[lane][at + half * 16], p[half]);
        _mm512_store_ps(&sums.value[lane][at + half * 16], t[half]);
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
void mean_of_lanes(const WeightedMean& g) {
  const T *kv = static_cast<const T*>(g.kv), *gate = static_cast<const T*>(g.gate);
  alignas(64) float logits[kMeanSlots][kMeanStrip];
  StripSums sums;
  StripLogits known = logits_of_strip<false>(g, gate, 0, logits);
  for (int c = 0; c < g.channels; c += kMeanStrip) {
    if (!tells_apart(known.least)) known = logits_of_strip<true>(g, gate, c, logits);
    const __m512 top[2] = {known.top[0], known.top[1]};
    known = c + kMeanStrip < g.channels ? sum_strip<kPerLane, false>(g, kv, gate, c, top, logits, sums)
                                        : sum_strip<kPerLane, true>(g, kv, gate, c, top, logits, sums);
    for (int i = 0; i < kMeanStrip; i += 16) {
      finish16(g, c + i, top[i / 16], fold_512<1>(&sums.weight[0][i]), fold_512<1>(&sums.value[0][i]));
    }
  }
}

// Eight slots, each a lane of its own: all of them in registers.
template <bool kRead, class T>
KF_INLINE bool mean_of_eight(const WeightedMean& g, const T* kv, const T* gate, int c) {
  __m512 p[8], t[8], top = constant(int32_t(0xFF800000));
  const T* from[8];
  __m512i least = _mm512_set1_epi32(-1);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    p[j] = logit16<kRead>(gate + g.token[j] + c, g.bias + g.place[j] + c, top, least);
    from[j] = kv + g.token[j] + c;
  }
  if (!kRead && !tells_apart(least)) return false;
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) p[j] = _mm512_sub_ps(p[j], top);
  weigh(from, p, t);
#pragma GCC unroll 3
  for (int width = 4; width > 0; width /= 2) {
#pragma GCC unroll 4
    for (int lane = 0; lane < width; ++lane) {
      p[lane] = _mm512_add_ps(p[lane], p[lane + width]);
      t[lane] = _mm512_add_ps(t[lane], t[lane + width]);
    }
  }
  finish16(g, c, top, p[0], t[0]);
  return true;
}
template <class T>
void means_of_eight(const WeightedMean& g) {
  const T *kv = static_cast<const T*>(g.kv), *gate = static_cast<const T*>(g.gate);
  constexpr int kLook = 8;  // strips to be worked on while memory answers
  for (int c = 0; c < g.channels; c += kMeanStrip) {
    const int64_t ahead = strip_ahead(g, c, std::min(kLook, g.channels / kMeanStrip));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int column = c + half * 16;
      if (!mean_of_eight<false>(g, kv, gate, column)) mean_of_eight<true>(g, kv, gate, column);
#pragma GCC unroll 4
      for (int j = half * 4; j < half * 4 + 4; ++j) {
        ask_for(kv + g.token[j] + ahead);
        ask_for(gate + g.token[j] + ahead);
      }
    }
  }
}

// Any number of slots below that of lanes, some of them perhaps without a token.
template <class T>
void mean_of_few(const WeightedMean& g) {
  const T *kv = static_cast<const T*>(g.kv), *gate = static_cast<const T*>(g.gate);
  const LaneFolds folds(g.slots);
  for (int c = 0; c < g.channels; c += 16) {
    __m512 p[kMeanLanes], t[kMeanLanes], top = constant(int32_t(0xFF800000));
    __m512i least;
    for (int j = 0; j < g.absent; ++j) p[j] = t[j] = _mm512_setzero_ps();
    for (int j = g.absent; j < g.slots; ++j) {
      p[j] = logit16<true>(gate + g.token[j] + c, g.bias + g.place[j] + c, top, least);
    }
    for (int j = g.absent; j < g.slots; ++j) {
      __m512 one_p[1] = {_mm512_sub_ps(p[j], top)}, one_t[1];
      weigh({kv + g.token[j] + c}, one_p, one_t);
      p[j] = one_p[0], t[j] = one_t[0];
    }
    for (int f = 0; f < folds.count; ++f) {
      const int to = folds.to[f], from = folds.from[f];
      p[to] = _mm512_add_ps(p[to], p[from]);
      t[to] = _mm512_add_ps(t[to], t[from]);
    }
    finish16(g, c, top, p[0], t[0]);
  }
}

template <class T>
void weighted_mean_512(const WeightedMean& g) {
  if (g.slots == 8 && g.absent == 0) return means_of_eight<T>(g);
  if (g.slots < kMeanLanes) return mean_of_few<T>(g);
  if (g.slots == kMeanLanes) return mean_of_lanes<1, T>(g);
  if (g.slots == 2 * kMeanLanes) return mean_of_lanes<2, T>(g);
  if (g.slots == 3 * kMeanLanes) return mean_of_lanes<3, T>(g);
  return mean_of_lanes<4, T>(g);
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
