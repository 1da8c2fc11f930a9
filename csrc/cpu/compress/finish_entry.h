// An entry from its weighted mean: RMS normalization, weight, rotation of the trailing channels; see
// kernelforge.ops.compress.kernel.
#pragma once

#include <algorithm>

#include "core/isa.h"
#include "core/read.h"
#include "core/scalar.h"
#include "core/values_256.h"
#include "core/values_512.h"

namespace kf {
namespace {

constexpr int kRowLanes = 32;  // of R(n), contract C7
constexpr int32_t kRsqrtSeed = 0x5F2A7183, kRsqrtStep1 = 0x403E4D1C, kRsqrtStep0 = 0x407E594C;

struct Entry {
  void* out;                   // [channels]
  const float *mean, *weight;  // [channels]
  const float *cos, *sin;      // [pairs], of the entry's position
  int64_t ahead;               // elements to the next entry's angles
  int channels, pairs;         // channels: a multiple of 32
  float eps;
};

// Contract C6.
KF_INLINE float rsqrt_value(float x) {
  constexpr int32_t kInfinity = 0x7F800000, kNan = 0x7FC00000, kBinade = 1 << 23;
  const int32_t bits = kf_i(x);
  if ((bits & 0x7FFFFFFF) < kSmallestReadBits) return kf_f(kInfinity);
  if (bits == kInfinity) return 0.0f;
  if (bits < 0 || bits > kInfinity) return kf_f(kNan);
  const int32_t seed = kRsqrtSeed - (bits >> 1);
  const float t = (x * kf_f(seed)) * kf_f(seed);
  const float y = kf_f(seed - kBinade) * (t * (t - kf_f(kRsqrtStep1)) + kf_f(kRsqrtStep0));
  return y + y * (0.5f - ((0.5f * x) * y) * y);
}

KF_INLINE float inverse_rms(float total, const Entry& g) {
  return rsqrt_value(kf_f(canonical_bits(total)) * (1.0f / float(g.channels)) + g.eps);
}

template <class T>
void finish_entry_portable(const Entry& g) {
  float lanes[kRowLanes] = {};
  for (int c = 0; c < g.channels; c += kRowLanes) {
    for (int lane = 0; lane < kRowLanes; ++lane) lanes[lane] += g.mean[c + lane] * g.mean[c + lane];
  }
  for (int width = kRowLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  const float inverse = inverse_rms(lanes[0], g);
  const auto normal = [&](int c) { return read_value(read_value(g.mean[c] * inverse) * read_value(g.weight[c])); };
  T* const out = static_cast<T*>(g.out);
  const int plain = g.channels - 2 * g.pairs;
  for (int c = 0; c < plain; ++c) store_value(out + c, normal(c));
  for (int c = plain; c < g.channels; ++c) {
    // Every channel is a sum of two products: compilers fuse a difference and a sum side by side.
    const int pair = (c - plain) / 2, odd = (c - plain) % 2;
    const float other = normal(c + 1 - 2 * odd), sin = read_value(g.sin[pair]) * (odd ? 1.0f : -1.0f);
    store_value(out + c, read_value(normal(c) * read_value(g.cos[pair]) + other * sin));
  }
}

}  // namespace
}  // namespace kf

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

// R of 32 lanes (contract C7), 8 of them in each operand.
KF_INLINE float fold_lanes_256(const __m256 (&lanes)[4]) {
  const __m256 eight = _mm256_add_ps(_mm256_add_ps(lanes[0], lanes[2]), _mm256_add_ps(lanes[1], lanes[3]));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Angles of 8 channels: each of 4 for two of them.
KF_INLINE __m256 angles8(const float* from) {
  const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  return read8(_mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), twice));
}

// `pairs` is a multiple of 4.
template <class T>
void finish_entry_256(const Entry& g) {
  for (int pair = 0; pair < g.pairs; pair += 16) {  // rows of angles lie too far apart for the prefetchers of CPUs
    _mm_prefetch(reinterpret_cast<const char*>(g.cos + g.ahead + pair), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(g.sin + g.ahead + pair), _MM_HINT_T0);
  }
  __m256 lanes[4] = {};
  for (int c = 0; c < g.channels; c += kRowLanes) {
    for (int i = 0; i < 4; ++i) {
      const __m256 x = _mm256_loadu_ps(g.mean + c + i * 8);
      lanes[i] = _mm256_add_ps(lanes[i], _mm256_mul_ps(x, x));
    }
  }
  const __m256 inverse = _mm256_set1_ps(inverse_rms(fold_lanes_256(lanes), g));
  const auto normal = [&](int c) KF_INLINE_LAMBDA {
    const __m256 x = read8(_mm256_mul_ps(_mm256_loadu_ps(g.mean + c), inverse));
    return read8(_mm256_mul_ps(x, read8(_mm256_loadu_ps(g.weight + c))));
  };
  T* const out = static_cast<T*>(g.out);
  const int plain = g.channels - 2 * g.pairs;
  for (int c = 0; c < plain; c += 8) store8(out + c, normal(c));
  const __m256 even = _mm256_castsi256_ps(_mm256_set1_epi64x(0x80000000));
  for (int c = plain; c < g.channels; c += 8) {
    const __m256 x = normal(c), other = _mm256_permute_ps(x, 0xB1);
    const __m256 cos = angles8(g.cos + (c - plain) / 2), sin = _mm256_xor_ps(angles8(g.sin + (c - plain) / 2), even);
    store8(out + c, read8(_mm256_add_ps(_mm256_mul_ps(x, cos), _mm256_mul_ps(other, sin))));
  }
}

}  // namespace
}  // namespace kf
KF_TARGET_END

KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
namespace kf {
namespace {

// R of 32 lanes (contract C7), 16 of them in each operand.
KF_INLINE float fold_lanes_512(__m512 low, __m512 high) {
  const __m512 sixteen = _mm512_add_ps(low, high);
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sixteen), _mm512_extractf32x8_ps(sixteen, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Angles of 16 channels: each of 8 for two of them.
KF_INLINE __m512 angles16(const float* from) {
  const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  return read16(_mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(from))));
}

// `pairs` is a multiple of 8.
template <class T>
void finish_entry_512(const Entry& g) {
  for (int pair = 0; pair < g.pairs; pair += 16) {  // rows of angles lie too far apart for the prefetchers of CPUs
    _mm_prefetch(reinterpret_cast<const char*>(g.cos + g.ahead + pair), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(g.sin + g.ahead + pair), _MM_HINT_T0);
  }
  __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
  for (int c = 0; c < g.channels; c += kRowLanes) {
    const __m512 x = _mm512_loadu_ps(g.mean + c), y = _mm512_loadu_ps(g.mean + c + 16);
    low = _mm512_add_ps(low, _mm512_mul_ps(x, x));
    high = _mm512_add_ps(high, _mm512_mul_ps(y, y));
  }
  const __m512 inverse = _mm512_set1_ps(inverse_rms(fold_lanes_512(low, high), g));
  const auto normal = [&](int c) KF_INLINE_LAMBDA {
    const __m512 x = read16(_mm512_mul_ps(_mm512_loadu_ps(g.mean + c), inverse));
    return read16(_mm512_mul_ps(x, read16(_mm512_loadu_ps(g.weight + c))));
  };
  T* const out = static_cast<T*>(g.out);
  const int plain = g.channels - 2 * g.pairs;
  for (int c = 0; c < plain; c += 16) store16(out + c, normal(c));
  const __m512 even = _mm512_castsi512_ps(_mm512_maskz_set1_epi32(0x5555, int(0x80000000)));
  for (int c = plain; c < g.channels; c += 16) {
    const __m512 x = normal(c), other = _mm512_permute_ps(x, 0xB1);
    const __m512 cos = angles16(g.cos + (c - plain) / 2), sin = _mm512_xor_ps(angles16(g.sin + (c - plain) / 2), even);
    store16(out + c, read16(_mm512_add_ps(_mm512_mul_ps(x, cos), _mm512_mul_ps(other, sin))));
  }
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
