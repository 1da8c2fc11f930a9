// The gradients of an entry's tokens from that of its weighted mean; see kernelforge.ops.compress.pool.
#pragma once

#include "compress/weighted_mean.h"

namespace kf {
namespace {

struct MeanGradient {
  float* sums;  // [slots, channels], of the logits' gradients over entries; this entry's are added
  void *kv_grad, *gate_grad;
  const float *top, *share, *mean, *slope;  // [channels]
  const void *kv, *gate;
  const float* bias;
  int slots, channels, absent;                   // as in WeightedMean
  int64_t token[kMeanSlots], place[kMeanSlots];  // as in WeightedMean
};

template <class T>
void mean_gradient_portable(const MeanGradient& g) {
  const T *kv = static_cast<const T*>(g.kv), *gate = static_cast<const T*>(g.gate);
  T *kv_grad = static_cast<T*>(g.kv_grad), *gate_grad = static_cast<T*>(g.gate_grad);
  for (int j = g.absent; j < g.slots; ++j) {
    for (int c = 0; c < g.channels; ++c) {
      const int64_t at = g.token[j] + c;
      const float z = read_value(gate[at]) + read_value(g.bias[g.place[j] + c]);
      const float of_kv = read_value(weight_of((z - g.top[c]) * kf_f(kLog2E)) * g.share[c] * g.slope[c]);
      const float of_gate = of_kv * read_value(read_value(kv[at]) - g.mean[c]);
      g.sums[int64_t(j) * g.channels + c] += of_gate;
      store_value(kv_grad + at, of_kv);
      store_value(gate_grad + at, of_gate);
    }
  }
}

}  // namespace
}  // namespace kf

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

// 8 n channels of slot j from c on: a row is read and written from its beginning to its end.
template <int n, class T>
KF_INLINE void gradient_of_slot_256(const MeanGradient& g, int j, int c) {
  const int64_t at = g.token[j] + c;
  const T *kv = static_cast<const T*>(g.kv) + at, *gate = static_cast<const T*>(g.gate) + at;
  T *kv_grad = static_cast<T*>(g.kv_grad) + at, *gate_grad = static_cast<T*>(g.gate_grad) + at;
  const float* const bias = g.bias + g.place[j] + c;
  float* const sum = g.sums + int64_t(j) * g.channels + c;
  __m256 p[n];
  KF_EACH {
    const __m256 z = _mm256_add_ps(read8(load8(gate + 8 * i)), read8(_mm256_loadu_ps(bias + 8 * i)));
    p[i] = _mm256_sub_ps(z, _mm256_loadu_ps(g.top + c + 8 * i));
  }
  weigh(p);
  KF_EACH {
    const __m256 scaled = _mm256_mul_ps(p[i], _mm256_loadu_ps(g.share + c + 8 * i));
    const __m256 of_kv = read8(_mm256_mul_ps(scaled, _mm256_loadu_ps(g.slope + c + 8 * i)));
    const __m256 distance = read8(_mm256_sub_ps(read8(load8(kv + 8 * i)), _mm256_loadu_ps(g.mean + c + 8 * i)));
    const __m256 of_gate = _mm256_mul_ps(of_kv, distance);
    _mm256_storeu_ps(sum + 8 * i, _mm256_add_ps(_mm256_loadu_ps(sum + 8 * i), of_gate));
    store8(kv_grad + 8 * i, of_kv);
    store8(gate_grad + 8 * i, of_gate);
  }
}

template <class T>
void mean_gradient_256(const MeanGradient& g) {
  for (int j = g.absent; j < g.slots; ++j) {
    for (int c = 0; c < g.channels; c += 32) gradient_of_slot_256<4, T>(g, j, c);
  }
}

}  // namespace
}  // namespace kf
KF_TARGET_END

KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace kf {
namespace {

// 16 n channels of slot j from c on: a row is read and written from its beginning to its end.
template <int n, class T>
KF_INLINE void gradient_of_slot(const MeanGradient& g, int j, int c) {
  const int64_t at = g.token[j] + c;
  const T *kv = static_cast<const T*>(g.kv) + at, *gate = static_cast<const T*>(g.gate) + at;
  T *kv_grad = static_cast<T*>(g.kv_grad) + at, *gate_grad = static_cast<T*>(g.gate_grad) + at;
  const float* const bias = g.bias + g.place[j] + c;
  float* const sum = g.sums + int64_t(j) * g.channels + c;
  __m512 p[n], v[n];
  KF_EACH {
    const __m512 z = _mm512_add_ps(read16(load16(gate + 16 * i)), read16(_mm512_loadu_ps(bias + 16 * i)));
    p[i] = _mm512_sub_ps(z, _mm512_loadu_ps(g.top + c + 16 * i));
  }
  weigh(p);
  KF_EACH_OF(v, load16(kv + 16 * i));
  KF_EACH {
    const __m512 scaled = _mm512_mul_ps(p[i], _mm512_loadu_ps(g.share + c + 16 * i));
    const __m512 of_kv = read16(_mm512_mul_ps(scaled, _mm512_loadu_ps(g.slope + c + 16 * i)));
    const __m512 distance = read16(_mm512_sub_ps(read16(v[i]), _mm512_loadu_ps(g.mean + c + 16 * i)));
    const __m512 of_gate = _mm512_mul_ps(of_kv, distance);
    _mm512_storeu_ps(sum + 16 * i, _mm512_add_ps(_mm512_loadu_ps(sum + 16 * i), of_gate));
    store16(kv_grad + 16 * i, of_kv);
    store16(gate_grad + 16 * i, of_gate);
  }
}

template <class T>
void mean_gradient_512(const MeanGradient& g) {
  constexpr int kChains = 8;
  for (int j = g.absent; j < g.slots; ++j) {
    int c = 0;
    for (; c + 16 * kChains <= g.channels; c += 16 * kChains) gradient_of_slot<kChains, T>(g, j, c);
    for (; c < g.channels; c += 32) gradient_of_slot<2, T>(g, j, c);
  }
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
