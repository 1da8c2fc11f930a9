// The indexer's scores as one chain of AVX512-VNNI dots over the whole head dimension (see indexer/folded.h).
#pragma once

#include "indexer/folded.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
namespace kf {
namespace {

constexpr int kFoldHeads = 8;  // heads that a kernel takes
static_assert(kPaddedHeads % kFoldHeads == 0);

// Two strips of 16 entries. codes: [depth / 4][2][64].
struct FoldedPanel : FoldedScales {
  uint8_t* codes;
};

inline void fold_panel(const IndexerTile& tile, int first, int count, FoldedPanel& out) {
  const int blocks = tile.depth / kBlock;
  out.usable = true;
  out.lowest = 127, out.highest = -127;
  const MxTile keys{nullptr,
                    0,
                    nullptr,
                    0,
                    nullptr,
                    0,
                    tile.k + first * tile.ldk,
                    tile.ldk,
                    tile.k_scale + first * tile.ld_k_scale,
                    tile.ld_k_scale,
                    0,
                    0,
                    tile.depth};
  for (int half = 0; half < 2; ++half) {
    // A second strip without entries repeats the first one's.
    const int col = half * kStrip < count ? half * kStrip : 0;
    const StripRows rows(keys, col, std::min(kStrip, count - col), 0);
    __m512i bytes[kFoldedDepth / kBlock], largest = _mm512_setzero_si512();
    if (blocks == 4 && tile.ld_k_scale == 4 && count - col >= kStrip) {
      // Sixteen entries' scales lie side by side.
      __m512i quads = _mm512_loadu_si512(rows.scales[0]);
      for (int b = 0; b < 4; ++b, quads = _mm512_srli_epi32(quads, 8)) {
        bytes[b] = _mm512_and_si512(quads, _mm512_set1_epi32(0xFF));
      }
    } else {
      StripScales scales(rows, blocks);
      for (int b = 0; b < blocks; ++b) bytes[b] = scales.bytes(b);
    }
    for (int b = 0; b < blocks; ++b) largest = _mm512_max_epi32(largest, bytes[b]);
    const __m512i lowest_read = _mm512_set1_epi32(kLowestRead);
    const __m512i base = _mm512_sub_epi32(_mm512_max_epi32(largest, lowest_read), _mm512_set1_epi32(kFoldBits));
    bool usable = _mm512_cmpgt_epi32_mask(largest, _mm512_set1_epi32(kHighestRead)) == 0;
    for (int b = 0; b < blocks; ++b) {
      const __m512i shift = _mm512_sub_epi32(bytes[b], base);
      const __mmask16 zero = _mm512_cmplt_epi32_mask(bytes[b], lowest_read);
      usable &= (_mm512_cmplt_epi32_mask(shift, _mm512_setzero_si512()) & ~zero) == 0;
      // (w + 12) << shift, and what is missing to an offset of 96; bytes do not overflow into each other.
      const __m512i moved = _mm512_sllv_epi32(_mm512_set1_epi32(kVnniOffset * 0x01010101), shift);
      const __m512i missing = _mm512_sub_epi8(_mm512_set1_epi8(char(kFoldOffset)), moved);
      __m512i codes[8];
      unpack_strip_block(rows, b, codes);
      for (int j = 0; j < 8; ++j) {
        __m512i folded = _mm512_add_epi8(_mm512_sllv_epi32(codes[j], shift), missing);
        folded = _mm512_mask_mov_epi32(folded, zero, _mm512_set1_epi8(char(kFoldOffset)));
        _mm512_store_si512(out.codes + (int64_t(b * 8 + j) * 2 + half) * 64, folded);
      }
    }
    _mm512_store_ps(out.scale + half * kStrip, _mm512_castsi512_ps(_mm512_slli_epi32(base, 23)));
    out.usable &= usable;
    out.lowest = std::min(out.lowest, _mm512_reduce_min_epi32(base) - 127);
    out.highest = std::max(out.highest, _mm512_reduce_max_epi32(base) - 127);
  }
}

// sums += four unsigned times four signed bytes in every lane. Spelled out because GCC 12 copies what the intrinsic
// adds to, twice for each dot, and keeps part of the sixteen sums in memory.
#define KF_ADD_DOTS(sums, bytes, four) asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(bytes), "v"(four))
#define KF_ADD_HEAD(h)                                \
  {                                                   \
    const __m512i four = _mm512_set1_epi32(codes[h]); \
    KF_ADD_DOTS(first##h, w0, four);                  \
    KF_ADD_DOTS(second##h, w1, four);                 \
  }
#define KF_BEGIN_HEAD(h) __m512i first##h = _mm512_set1_epi32(query.bias[head + h]), second##h = first##h;
#define KF_END_HEAD(h) weigh_dots(query.weight[head + h], first##h, second##h, products + (head + h) * kSumWidth);
#define KF_EACH_HEAD(do) \
  do (0) do(1) do(2) do(3) do(4) do(5) do(6) do(7)

KF_INLINE void weigh_dots(float weight, __m512i first, __m512i second, float* products) {
  const auto weigh = [&](__m512i dots) KF_INLINE_LAMBDA {
    const __m512i positive = _mm512_max_epi32(dots, _mm512_setzero_si512());
    return _mm512_mul_ps(_mm512_cvtepi32_ps(positive), _mm512_set1_ps(weight));
  };
  _mm512_store_ps(products, weigh(first));
  _mm512_store_ps(products + kStrip, weigh(second));
}

// products[h][32] = weight[h] * relu(integer dot), kFoldHeads heads from `head`.
KF_INLINE void folded_products(const FoldedQuery& query, const FoldedPanel& panel, int head, int ld, int groups,
                               float* products) {
  static_assert(kFoldHeads == 8, "KF_EACH_HEAD names eight");
  KF_EACH_HEAD(KF_BEGIN_HEAD)
  const int32_t* codes = query.codes + head;
  const uint8_t* entries = panel.codes;
  for (int j = 0; j < groups; ++j, codes += ld, entries += 128) {
    const __m512i w0 = _mm512_load_si512(entries), w1 = _mm512_load_si512(entries + 64);
    KF_EACH_HEAD(KF_ADD_HEAD)
  }
  KF_EACH_HEAD(KF_END_HEAD)
}

#undef KF_ADD_DOTS
#undef KF_ADD_HEAD
#undef KF_BEGIN_HEAD
#undef KF_END_HEAD
#undef KF_EACH_HEAD

// R(heads) of 16 columns of p [heads][kSumWidth]; -0 where all are.
KF_INLINE __m512 sum_strip(const float* p, int heads) {
  const auto row = [&](int h) KF_INLINE_LAMBDA { return _mm512_load_ps(p + h * kSumWidth); };
  if (heads == 4) return _mm512_add_ps(_mm512_add_ps(row(0), row(1)), _mm512_add_ps(row(2), row(3)));
  const auto lane = [&](int l) KF_INLINE_LAMBDA {
    __m512 sum = row(l);
    for (int h = l + kHeadLanes; h < heads; h += kHeadLanes) sum = _mm512_add_ps(sum, row(h));
    return sum;
  };
  constexpr int kHalf = kHeadLanes / 2;
  __m512 lanes[kHalf];
#pragma GCC unroll 16
  for (int l = 0; l < kHalf; ++l) {
    lanes[l] = l < heads ? lane(l) : _mm512_setzero_ps();
    if (l + kHalf < heads) lanes[l] = _mm512_add_ps(lanes[l], lane(l + kHalf));
  }
#pragma GCC unroll 4
  for (int width = kHalf / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < width; ++l) lanes[l] = _mm512_add_ps(lanes[l], lanes[l + width]);
  }
  return lanes[0];
}

inline void score_folded(const IndexerTile& tile, int query, const FoldedQuery& folded, const FoldedPanel& panel,
                         int first, int count, float* products) {
  const int ld = padded_heads(tile.heads);
  for (int head = 0; head < ld; head += kFoldHeads) {
    folded_products(folded, panel, head, ld, tile.depth / 4, products);
  }
  float* out = tile.scores + query * tile.ld_scores + first;
  for (int c = 0; c < 2 && c * kStrip < count; ++c) {
    const int n = std::min(kStrip, count - c * kStrip);
    const __m512 sums = sum_strip(products + c * kStrip, tile.heads);
    const __m512 scaled = _mm512_mul_ps(sums, _mm512_load_ps(panel.scale + c * kStrip));
    // -0 + 0 is +0.
    _mm512_mask_storeu_ps(out + c * kStrip, __mmask16((1u << n) - 1), _mm512_add_ps(scaled, _mm512_setzero_ps()));
  }
}

inline int score_vnni(Isa isa, const IndexerTile& tile) {
  if (tile.depth > kFoldedDepth) return score_by_panels(isa, tile);
  const int ld = padded_heads(tile.heads), groups = tile.depth / 4;
  Scratch& scratch = indexer_scratch();
  const size_t per_query = Scratch::round_up(size_t(ld) * groups * 4) + 2 * Scratch::round_up(size_t(ld) * 4);
  if (!scratch.reserve(tile.queries * per_query + size_t(groups) * 128 + kSumWidth * sizeof(float) * (ld + 1) +
                       Scratch::round_up(tile.queries * sizeof(FoldedQuery)) + 4 * Scratch::kAlignment)) {
    return kOutOfMemory;
  }
  FoldedQuery* queries = scratch.take<FoldedQuery>(tile.queries);
  FoldedPanel panel;
  panel.codes = scratch.take<uint8_t>(size_t(groups) * 128);
  panel.scale = scratch.take<float>(kSumWidth);
  float* products = scratch.take<float>(size_t(ld) * kSumWidth);
  int entries = 0;
  for (int s = 0; s < tile.queries; ++s) {
    queries[s].codes = scratch.take<int32_t>(size_t(ld) * groups);
    queries[s].bias = scratch.take<int32_t>(ld);
    queries[s].weight = scratch.take<float>(ld);
    entries = std::max(entries, tile.seen(s));
    if (tile.seen(s) > 0) fold_query(tile, s, queries[s]);
  }
  for (int first = 0; first < entries; first += kSumWidth) {
    fold_panel(tile, first, std::min(kSumWidth, entries - first), panel);
    for (int s = 0; s < tile.queries; ++s) {
      const int count = std::min(kSumWidth, tile.seen(s) - first);
      if (count <= 0) continue;
      if (commutes(queries[s], panel)) {
        score_folded(tile, s, queries[s], panel, first, count, products);
      } else {
        const int status = score_panel(isa, tile, s, first, count, products);
        if (status != kOk) return status;
      }
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
