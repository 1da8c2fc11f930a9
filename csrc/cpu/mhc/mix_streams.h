// Mixtures of residual streams: out[k] = gate[k] * y + R(n) over j of m[j, k] * x[j], and the collapse R(n) of
// gate[j] * x[j]. Memory-bound: each element is read once, and large results go past the caches.
#pragma once

#include <algorithm>
#include <cstddef>

#include "core/isa.h"
#include "core/read.h"
#include "core/scalar.h"
#include "core/values_256.h"

namespace kf {
namespace {

struct Streams {
  void* out;
  int64_t ld_out;
  const void* y;  // null for the collapse
  int64_t ld_y;
  const void* x;
  int64_t ld_x;
  int64_t stride;     // elements from one stream to the next
  const float* gate;  // element j of token t at gate[t * gate_token + j * gate_stream]
  int64_t gate_token, gate_stream;
  const float* m;  // [tokens][n][n]; null for the collapse
  int64_t ld_m;
  int tokens, channels;  // channels: a multiple of 32
  bool past_caches;
};

// Results of this size are not kept in a cache: whoever reads them next begins where they no longer are.
inline bool past_caches(int64_t tokens, int64_t elements, bool wide) {
  constexpr int64_t kLargest = 16 << 20;
  return tokens * elements * (wide ? 4 : 2) >= kLargest;
}

// The type of the second argument is that of the result.
KF_INLINE uint16_t mix_stored(float x, uint16_t) {
  const int32_t bits = kf_i(x), magnitude = bits & 0x7FFFFFFF;
  const uint32_t rounded = (uint32_t(magnitude) + 0x7FFFu + ((uint32_t(magnitude) >> 16) & 1u)) >> 16;
  const uint32_t code = magnitude == 0 ? 0u : rounded | (uint32_t(bits) >> 16 & 0x8000u);
  return uint16_t(magnitude > 0x7F800000 ? 0x7FC0u : code);
}
KF_INLINE float mix_stored(float x, float) {
  const int32_t bits = kf_i(x), magnitude = bits & 0x7FFFFFFF;
  return kf_f(magnitude > 0x7F800000 ? 0x7FC00000 : magnitude == 0 ? 0 : bits);
}

// R(n) of n terms (contract C7). A macro: vector types want it compiled for their instruction set.
#define KF_ORDERED_SUM(Value)                                          \
  template <int n>                                                     \
  KF_INLINE Value ordered_sum(Value* terms) {                          \
    if (n == 4) return (terms[0] + terms[1]) + (terms[2] + terms[3]);  \
    for (int i = 4; i < n; ++i) terms[i - 4] += terms[i];              \
    for (int i = 2; i < std::min(n, 4); ++i) terms[i - 2] += terms[i]; \
    return terms[0] + terms[1];                                        \
  }
KF_ORDERED_SUM(float)

// One token: the gates and the columns of the mixing matrix.
template <int n>
struct TokenWeights {
  float gate[n], m[n][n];
  KF_INLINE TokenWeights(const Streams& g, int token) {
    for (int j = 0; j < n; ++j) gate[j] = g.gate[token * g.gate_token + j * g.gate_stream];
    if (g.m == nullptr) return;
    for (int j = 0; j < n; ++j) {
      for (int k = 0; k < n; ++k) m[j][k] = g.m[token * g.ld_m + j * n + k];
    }
  }
};

constexpr int kMixLanes = 32;

template <class T>
KF_INLINE void read_lanes(const T* from, float* to) {
  for (int c = 0; c < kMixLanes; ++c) to[c] = read_value(from[c]);
}

// gate * block + R(n) of weights[j] * streams[j]; without a block the sum alone.
template <int n, bool kCollapse, class T>
KF_INLINE void mix_lanes(const float (*streams)[kMixLanes], const float* weights, int step, float gate,
                         const float* block, T* to) {
  for (int c = 0; c < kMixLanes; ++c) {
    float terms[n];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) terms[j] = weights[j * step] * streams[j][c];
    const float mixed = ordered_sum<n>(terms);
    to[c] = kCollapse ? mix_stored(mixed, T()) : mix_stored(gate * block[c] + mixed, T());
  }
}

template <int n, bool kCollapse, class T>
void mix_portable(const Streams& g) {
  for (int token = 0; token < g.tokens; ++token) {
    const TokenWeights<n> w(g, token);
    const T* x = static_cast<const T*>(g.x) + token * g.ld_x;
    const T* y = kCollapse ? nullptr : static_cast<const T*>(g.y) + token * g.ld_y;
    T* out = static_cast<T*>(g.out) + token * g.ld_out;
    for (int c = 0; c < g.channels; c += kMixLanes) {
      float streams[n][kMixLanes], block[kMixLanes];
      for (int j = 0; j < n; ++j) read_lanes(x + j * g.stride + c, streams[j]);
      T mixed[kMixLanes];
      if (kCollapse) {
        mix_lanes<n, true>(streams, w.gate, 1, 0.0f, nullptr, mixed);
        std::memcpy(out + c, mixed, sizeof mixed);
        continue;
      }
      read_lanes(y + c, block);
      for (int k = 0; k < n; ++k) {
        mix_lanes<n, false>(streams, &w.m[0][k], n, w.gate[k], block, mixed);
        std::memcpy(out + k * g.stride + c, mixed, sizeof mixed);
      }
    }
  }
}

}  // namespace
}  // namespace kf

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,prefer-vector-width=512")
namespace kf {
namespace {

KF_ORDERED_SUM(__m512)

// 32 neighbouring elements: the even ones and the odd ones.
struct Pairs {
  __m512 even, odd;
};

KF_INLINE Pairs load_pairs(const uint16_t* from) {
  const __m512i words = _mm512_loadu_si512(from);
  const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7FFF));
  const __mmask32 kept = _mm512_cmpge_epu16_mask(magnitude, _mm512_set1_epi16(kSmallestReadBits >> 16));
  const __m512i read = _mm512_maskz_mov_epi16(kept, words);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(read, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(read, _mm512_set1_epi32(int(0xFFFF0000))))};
}

// No value is subnormal here, so the conversion rounds as the contract does; NaN and -0 are made canonical.
template <bool kPastCaches>
KF_INLINE void store_pairs(uint16_t* to, Pairs x, __m512i interleaved) {
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(x.odd, x.even);
  __m512i words = _mm512_permutexvar_epi16(interleaved, halves);
  const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7FFF));
  words = _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(magnitude, magnitude), words);
  words = _mm512_mask_mov_epi16(words, _mm512_cmpgt_epu16_mask(magnitude, _mm512_set1_epi16(0x7F80)),
                                _mm512_set1_epi16(0x7FC0));
  if (kPastCaches) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), words);
  } else {
    _mm512_storeu_si512(to, words);
  }
}

template <int n, bool kCollapse, bool kPastCaches>
void mix_bf16(const Streams& g) {
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = uint16_t(i / 2 + i % 2 * 16);
  const __m512i interleaved = _mm512_load_si512(order);
  const auto sum = [&](const __m512* streams, const float* weights, int step) KF_INLINE_LAMBDA {
    __m512 terms[n];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) terms[j] = _mm512_mul_ps(_mm512_set1_ps(weights[j * step]), streams[j]);
    return ordered_sum<n>(terms);
  };
  for (int token = 0; token < g.tokens; ++token) {
    const TokenWeights<n> w(g, token);
    const uint16_t* x = static_cast<const uint16_t*>(g.x) + token * g.ld_x;
    const uint16_t* y = kCollapse ? nullptr : static_cast<const uint16_t*>(g.y) + token * g.ld_y;
    uint16_t* out = static_cast<uint16_t*>(g.out) + token * g.ld_out;
    for (int c = 0; c < g.channels; c += 32) {
      __m512 even[n], odd[n];
#pragma GCC unroll 8
      for (int j = 0; j < n; ++j) {
        const Pairs stream = load_pairs(x + j * g.stride + c);
        even[j] = stream.even;
        odd[j] = stream.odd;
      }
      if (kCollapse) {
        store_pairs<kPastCaches>(out + c, {sum(even, w.gate, 1), sum(odd, w.gate, 1)}, interleaved);
        continue;
      }
      const Pairs block = load_pairs(y + c);
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) {
        const __m512 gate = _mm512_set1_ps(w.gate[k]);
        const Pairs mixed = {_mm512_add_ps(_mm512_mul_ps(gate, block.even), sum(even, &w.m[0][k], n)),
                             _mm512_add_ps(_mm512_mul_ps(gate, block.odd), sum(odd, &w.m[0][k], n))};
        store_pairs<kPastCaches>(out + k * g.stride + c, mixed, interleaved);
      }
    }
  }
  if (kPastCaches) _mm_sfence();
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

KF_ORDERED_SUM(__m256)

// 16 neighbouring elements: the even ones and the odd ones.
struct HalfPairs {
  __m256 even, odd;
};

KF_INLINE HalfPairs load_half_pairs(const uint16_t* from) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i magnitude = _mm256_and_si256(words, _mm256_set1_epi16(0x7FFF));
  const __m256i kept = _mm256_cmpgt_epi16(magnitude, _mm256_set1_epi16((kSmallestReadBits >> 16) - 1));
  const __m256i read = _mm256_and_si256(words, kept);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(read, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(read, _mm256_set1_epi32(int(0xFFFF0000))))};
}

KF_INLINE void store_half_pairs(uint16_t* to, HalfPairs x) {
  const __m256i even = _mm256_srli_epi32(bf16_high_halves(x.even), 16);
  const __m256i words = _mm256_blend_epi16(even, bf16_high_halves(x.odd), 0xAA);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
}

// Results stay in the caches: past them, stores to n streams take up to six times as long on Zen 3.
template <int n, bool kCollapse>
void mix_bf16_avx2(const Streams& g) {
  const auto sum = [&](const __m256* streams, const float* weights, int step) KF_INLINE_LAMBDA {
    __m256 terms[n];
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) terms[j] = _mm256_mul_ps(_mm256_set1_ps(weights[j * step]), streams[j]);
    return ordered_sum<n>(terms);
  };
  for (int token = 0; token < g.tokens; ++token) {
    const TokenWeights<n> w(g, token);
    const uint16_t* x = static_cast<const uint16_t*>(g.x) + token * g.ld_x;
    const uint16_t* y = kCollapse ? nullptr : static_cast<const uint16_t*>(g.y) + token * g.ld_y;
    uint16_t* out = static_cast<uint16_t*>(g.out) + token * g.ld_out;
    for (int c = 0; c < g.channels; c += 16) {
      __m256 even[n], odd[n];
#pragma GCC unroll 8
      for (int j = 0; j < n; ++j) {
        const HalfPairs stream = load_half_pairs(x + j * g.stride + c);
        even[j] = stream.even;
        odd[j] = stream.odd;
      }
      if (kCollapse) {
        store_half_pairs(out + c, {sum(even, w.gate, 1), sum(odd, w.gate, 1)});
        continue;
      }
      const HalfPairs block = load_half_pairs(y + c);
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) {
        const __m256 gate = _mm256_set1_ps(w.gate[k]);
        const HalfPairs mixed = {_mm256_add_ps(_mm256_mul_ps(gate, block.even), sum(even, &w.m[0][k], n)),
                                 _mm256_add_ps(_mm256_mul_ps(gate, block.odd), sum(odd, &w.m[0][k], n))};
        store_half_pairs(out + k * g.stride + c, mixed);
      }
    }
  }
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif

namespace kf {
namespace {

template <int n, bool kCollapse>
void mix_of(const Streams& g, [[maybe_unused]] Isa isa, bool wide) {
  if (wide) return mix_portable<n, kCollapse, float>(g);
#if defined(KF_X86)
  if (isa == Isa::kAvx512Bf16 || isa == Isa::kAmx) {
    const bool aligned = reinterpret_cast<uintptr_t>(g.out) % 64 == 0 && g.ld_out % 32 == 0 && g.stride % 32 == 0;
    return g.past_caches && aligned ? mix_bf16<n, kCollapse, true>(g) : mix_bf16<n, kCollapse, false>(g);
  }
  if (isa == Isa::kAvx2) return mix_bf16_avx2<n, kCollapse>(g);
#endif
  mix_portable<n, kCollapse, uint16_t>(g);
}

template <bool kCollapse>
int mix_streams(const Streams& g, Isa isa, int n, bool wide) {
  if (isa == Isa::kMissing) return kIsaMissing;
  if (g.tokens < 0 || g.channels < 0 || g.channels % kMixLanes != 0 || n < 2 || n > 8) return kBadArgument;
  if (n == 2) mix_of<2, kCollapse>(g, isa, wide);
  if (n == 3) mix_of<3, kCollapse>(g, isa, wide);
  if (n == 4) mix_of<4, kCollapse>(g, isa, wide);
  if (n == 5) mix_of<5, kCollapse>(g, isa, wide);
  if (n == 6) mix_of<6, kCollapse>(g, isa, wide);
  if (n == 7) mix_of<7, kCollapse>(g, isa, wide);
  if (n == 8) mix_of<8, kCollapse>(g, isa, wide);
  return kOk;
}

}  // namespace
}  // namespace kf
