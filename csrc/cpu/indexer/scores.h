// Scores of the lightning indexer: scores[s,t] = R(H) over heads of weights[s,h] * relu(q[s,h] . k[t]).
//
// Any engine of the MX block accumulation gives the dots; then a head sum. Where the scales of a query and of 32
// entries allow it, there is a shorter way (indexer/folded.h).
#pragma once

#include <algorithm>

#include "core/read.h"
#include "mx/engines.h"

namespace kf {
namespace {

struct IndexerTile {
  float* scores;
  int64_t ld_scores;
  const uint8_t* q;
  int64_t ldq;
  const uint8_t* q_scale;
  int64_t ld_q_scale;
  const uint8_t* k;
  int64_t ldk;
  const uint8_t* k_scale;
  int64_t ld_k_scale;
  const float* weights;
  int64_t ld_weights;
  const int32_t* visible;  // entries that a query sees; no others are read or written
  int queries, entries, heads, depth;

  int seen(int query) const { return std::min(visible[query], entries); }
  const uint8_t* q_row(int query, int head) const { return q + (int64_t(query) * heads + head) * ldq; }
  const uint8_t* q_scale_row(int query, int head) const {
    return q_scale + (int64_t(query) * heads + head) * ld_q_scale;
  }
};

constexpr int kHeadLanes = 32;
constexpr float kSmallestProduct = 0x1p-100f;

// sums[c] = R(heads) of the columns of p [heads][kWidth], which is overwritten; not yet canonical.
template <int kWidth>
KF_INLINE void sum_heads(float* p, int heads, float* sums) {
  const auto add = [&](int to, int from) KF_INLINE_LAMBDA {
    for (int c = 0; c < kWidth; ++c) p[to * kWidth + c] += p[from * kWidth + c];
  };
  for (int h = kHeadLanes; h < heads; ++h) add(h % kHeadLanes, h);
  if (heads == 4) {
    add(0, 1);
    add(2, 3);
    add(0, 2);
  } else {
    for (int width = kHeadLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width && lane + width < heads; ++lane) add(lane, lane + width);
    }
  }
  for (int c = 0; c < kWidth; ++c) sums[c] = p[c];
}

// Dots to weighted dots, in place.
template <int kWidth>
KF_INLINE void weigh(float* dots, int heads, const float* weights) {
  for (int h = 0; h < heads; ++h) {
    const float weight = std::fabs(weights[h]) < kSmallestRead ? 0.0f : weights[h];
    float* row = dots + h * kWidth;
    for (int c = 0; c < kWidth; ++c) {
      const float positive = row[c] <= 0.0f ? 0.0f : row[c];  // NaN stays
      const float product = weight * positive;
      row[c] = std::fabs(product) < kSmallestProduct ? 0.0f : product;
    }
  }
}

// Columns that one head sum takes.
constexpr int kSumWidth = 32;

inline Scratch& indexer_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

// Scores of one query for entries [first, first + count), count <= kSumWidth; `dots` [heads][kSumWidth].
inline int score_panel(Isa isa, const IndexerTile& tile, int query, int first, int count, float* dots) {
  std::fill_n(dots, int64_t(tile.heads) * kSumWidth, 0.0f);
  const MxTile product{dots,
                       kSumWidth,
                       tile.q_row(query, 0),
                       tile.ldq,
                       tile.q_scale_row(query, 0),
                       tile.ld_q_scale,
                       tile.k + first * tile.ldk,
                       tile.ldk,
                       tile.k_scale + first * tile.ld_k_scale,
                       tile.ld_k_scale,
                       tile.heads,
                       count,
                       tile.depth};
  const int status = accumulate<kE2m1>(isa, product);
  if (status != kOk) return status;
  float sums[kSumWidth];
  weigh<kSumWidth>(dots, tile.heads, tile.weights + query * tile.ld_weights);
  sum_heads<kSumWidth>(dots, tile.heads, sums);
  float* out = tile.scores + query * tile.ld_scores + first;
  for (int c = 0; c < count; ++c) store_value(out + c, sums[c]);
  return kOk;
}

inline int score_by_panels(Isa isa, const IndexerTile& tile) {
  Scratch& scratch = indexer_scratch();
  if (!scratch.reserve(size_t(tile.heads) * kSumWidth * sizeof(float))) return kOutOfMemory;
  float* dots = scratch.take<float>(size_t(tile.heads) * kSumWidth);
  for (int s = 0; s < tile.queries; ++s) {
    for (int first = 0, seen = tile.seen(s); first < seen; first += kSumWidth) {
      const int status = score_panel(isa, tile, s, first, std::min(kSumWidth, seen - first), dots);
      if (status != kOk) return status;
    }
  }
  return kOk;
}

}  // namespace
}  // namespace kf
