// C (+)= A B for int8 tiles with int32 accumulation modulo 2^32: exact wherever the true sum fits.
//
// Both operands are packed a chunk at a time with k padded by zeros: A as rows, B as strips of 16 columns in groups
// of as many k as the engine's instruction sums (4 int8, or 2 int16).
#pragma once

#include <algorithm>

#include "core/isa.h"
#include "core/scratch.h"

namespace kf {
namespace {

struct GemmS8 {
  int32_t* c;
  int64_t ldc;
  const int8_t* a;
  int64_t lda;
  const int8_t* b;
  int64_t ldb;
  int m, n, k;
  bool trans_b;  // B is [n][k], else [k][n]
  bool clear;
};

constexpr int kGemmColumns = 32;  // two strips
constexpr int kGemmDepth = 64;    // k is padded to this

// Packed operands of one kernel call: a [rows][depth], b [2][depth * 16], bias [rows].
template <class T>
struct GemmOperands {
  const T* a;
  const T* b;
  const int32_t* bias;
  int depth;
};

template <class T, int kGroup>
KF_INLINE void pack_gemm_strip(const GemmS8& g, int col, int first, int k, int depth, int flip, T* out) {
  const int n = std::max(0, std::min(16, g.n - col));
  if (n < 16 || k < depth) std::fill_n(out, depth * 16, T(0 ^ flip));
  for (int i = 0; i < k; ++i) {
    T* group = out + i / kGroup * (16 * kGroup) + i % kGroup;
    if (g.trans_b) {
      const int8_t* from = g.b + col * g.ldb + first + i;
      for (int c = 0; c < n; ++c) group[c * kGroup] = T(from[c * g.ldb] ^ flip);
    } else {
      const int8_t* from = g.b + (first + i) * g.ldb + col;
      for (int c = 0; c < n; ++c) group[c * kGroup] = T(from[c] ^ flip);
    }
  }
}

// Engine has: T, kGroup, kRows, kFlip (-128 where B is made unsigned, else 0) and
// kernel(GemmOperands<T>, rows, int32_t out[kRows][32]).
template <class Engine>
int gemm_s8_tiles(const GemmS8& g) {
  using T = typename Engine::T;
  constexpr int kDepthChunk = 1024, kRowChunk = 256;
  const int depth_max = std::min((g.k + kGemmDepth - 1) / kGemmDepth * kGemmDepth, kDepthChunk);
  const int rows_max = (std::min(g.m, kRowChunk) + Engine::kRows - 1) / Engine::kRows * Engine::kRows;
  Scratch& scratch = thread_scratch();
  if (!scratch.reserve((size_t(rows_max) + kGemmColumns) * depth_max * sizeof(T) + rows_max * sizeof(int32_t) +
                       Engine::kRows * kGemmColumns * sizeof(int32_t) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  T* a = scratch.take<T>(size_t(rows_max) * depth_max);
  T* b = scratch.take<T>(size_t(kGemmColumns) * depth_max);
  int32_t* bias = scratch.take<int32_t>(rows_max);
  int32_t* out = scratch.take<int32_t>(Engine::kRows * kGemmColumns);
  if (g.clear) {
    for (int r = 0; r < g.m; ++r) std::fill_n(g.c + r * g.ldc, g.n, 0);
  }
  for (int first = 0; first < g.k; first += kDepthChunk) {
    const int k = std::min(kDepthChunk, g.k - first), depth = (k + kGemmDepth - 1) / kGemmDepth * kGemmDepth;
    for (int row = 0; row < g.m; row += kRowChunk) {
      const int m = std::min(kRowChunk, g.m - row);
      for (int r = 0; r < m; ++r) {
        const int8_t* from = g.a + (row + r) * g.lda + first;
        T* to = a + int64_t(r) * depth;
        int32_t sum = 0;
        for (int i = 0; i < k; ++i) {
          to[i] = T(from[i]);
          sum += from[i];
        }
        std::fill(to + k, to + depth, T(0));
        bias[r] = sum * Engine::kFlip;
      }
      for (int col = 0; col < g.n; col += kGemmColumns) {
        const int n = std::min(kGemmColumns, g.n - col);
        pack_gemm_strip<T, Engine::kGroup>(g, col, first, k, depth, Engine::kFlip, b);
        pack_gemm_strip<T, Engine::kGroup>(g, col + 16, first, k, depth, Engine::kFlip, b + int64_t(depth) * 16);
        for (int r = 0; r < m; r += Engine::kRows) {
          const int rows = std::min(Engine::kRows, m - r);
          for (int i = rows; i < Engine::kRows; ++i) std::fill_n(a + int64_t(r + i) * depth, depth, T(0));
          Engine::kernel(GemmOperands<T>{a + int64_t(r) * depth, b, bias + r, depth}, out);
          for (int i = 0; i < rows; ++i) {
            int32_t* c = g.c + (row + r + i) * g.ldc + col;
            for (int j = 0; j < n; ++j) c[j] = int32_t(uint32_t(c[j]) + uint32_t(out[i * kGemmColumns + j]));
          }
        }
      }
    }
  }
  return kOk;
}

struct PortableGemm {
  using T = int16_t;
  static constexpr int kGroup = 1, kRows = 4, kFlip = 0;
  static void kernel(const GemmOperands<T>& x, int32_t* out) {
    for (int s = 0; s < 2; ++s) {
      int32_t sums[kRows][16] = {};
      const T* b = x.b + int64_t(s) * x.depth * 16;
      for (int i = 0; i < x.depth; ++i) {
        for (int r = 0; r < kRows; ++r) {
          for (int c = 0; c < 16; ++c) sums[r][c] += int32_t(x.a[int64_t(r) * x.depth + i]) * b[i * 16 + c];
        }
      }
      for (int r = 0; r < kRows; ++r) std::copy_n(sums[r], 16, out + r * kGemmColumns + s * 16);
    }
  }
};

inline int gemm_s8_portable(const GemmS8& g) { return gemm_s8_tiles<PortableGemm>(g); }

}  // namespace
}  // namespace kf

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

struct VnniGemm {
  using T = int8_t;
  static constexpr int kGroup = 4, kRows = 6, kFlip = -128;
  static void kernel(const GemmOperands<T>& x, int32_t* out) {
    __m512i sums[kRows][2];
    for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm512_set1_epi32(x.bias[r]);
    const T* b = x.b;
    const int64_t second = int64_t(x.depth) * 16;
    for (int i = 0; i < x.depth; i += 4, b += 64) {
      const __m512i b0 = _mm512_load_si512(b), b1 = _mm512_load_si512(b + second);
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        std::memcpy(&four, x.a + int64_t(r) * x.depth + i, 4);
        const __m512i left = _mm512_set1_epi32(four);
        sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], b0, left);
        sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], b1, left);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      _mm512_store_si512(out + r * kGemmColumns, sums[r][0]);
      _mm512_store_si512(out + r * kGemmColumns + 16, sums[r][1]);
    }
  }
};

inline int gemm_s8_vnni(const GemmS8& g) { return gemm_s8_tiles<VnniGemm>(g); }

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif

#if defined(KF_AARCH64)
KF_TARGET_BEGIN("arch=armv8.2-a+dotprod")
namespace kf {
namespace {

struct NeonGemm {
  using T = int8_t;
  static constexpr int kGroup = 4, kRows = 4, kFlip = 0;
  static void kernel(const GemmOperands<T>& x, int32_t* out) {
    for (int s = 0; s < 2; ++s) {
      int32x4_t sums[kRows][4];
      for (auto& row : sums) {
        for (auto& four : row) four = vdupq_n_s32(0);
      }
      const T* b = x.b + int64_t(s) * x.depth * 16;
      for (int i = 0; i < x.depth; i += 4, b += 64) {
        for (int r = 0; r < kRows; ++r) {
          int32_t four;
          std::memcpy(&four, x.a + int64_t(r) * x.depth + i, 4);
          const int8x16_t left = vreinterpretq_s8_s32(vdupq_n_s32(four));
          for (int c = 0; c < 4; ++c) sums[r][c] = vdotq_s32(sums[r][c], left, vld1q_s8(b + c * 16));
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < 4; ++c) vst1q_s32(out + r * kGemmColumns + s * 16 + c * 4, sums[r][c]);
      }
    }
  }
};

inline int gemm_s8_neon(const GemmS8& g) { return gemm_s8_tiles<NeonGemm>(g); }

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
