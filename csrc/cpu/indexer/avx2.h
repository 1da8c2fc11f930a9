// The indexer's scores by vpmaddubsw: dots of a block stay in 16 bits, and vpmaddwd multiplies them by the entry's
// scale.
//
// Heads are folded (indexer/folded.h), entries are not: unsigned w + 12, below 2^5, times q, at most 96, twice, is
// below 2^15. A block's lane adds eight such pairs modulo 2^16, from minus what the offset brings; what is left is at
// most 16 * 12 * 96, which 16 bits hold. Its weight in the entry's dot is 2^0 to 2^3, or 0 for a scale read as zero.
#pragma once

#include "indexer/folded.h"

#if defined(KF_X86)
KF_TARGET_BEGIN("avx2,fma")
namespace kf {
namespace {

constexpr int kOctet = 8;                       // entries of a register
constexpr int kDotHeads = 4, kDotEntries = 16;  // what a kernel takes: their sums fill half of the registers
constexpr int kEntryOffset = 12;
constexpr int kQuartets = kBlock / 4;

// codes: [depth / 4][kSumWidth] groups of four bytes; factor: [depth / kBlock][kSumWidth], the same 16 bits twice.
struct EntryPanel : FoldedScales {
  uint8_t* codes;
  int32_t* factor;
};

// Entries [first, first + kOctet) of a tile; those past the last one repeat it.
struct OctetRows {
  const uint8_t* codes[kOctet];
  const uint8_t* scales[kOctet];
  KF_INLINE OctetRows(const IndexerTile& tile, int first, int end) {
    for (int c = 0; c < kOctet; ++c) {
      const int64_t entry = std::min(first + c, end - 1);
      codes[c] = tile.k + entry * tile.ldk;
      scales[c] = tile.k_scale + entry * tile.ld_k_scale;
    }
  }
};

KF_INLINE __m256i load_octet(const void* from) { return _mm256_load_si256(static_cast<const __m256i*>(from)); }
KF_INLINE void store_octet(void* to, __m256i x) { _mm256_store_si256(static_cast<__m256i*>(to), x); }

// Groups of one block of eight entries; to[group][kSumWidth][4].
KF_INLINE void unpack_octet(const OctetRows& rows, int block, uint8_t* to) {
  __m256i packed[4];
  avx2::load_columns(rows.codes, int64_t(block) * (kBlock / 2), packed);
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m256i odd = _mm256_srli_epi16(packed[j], 4);
    store_octet(to + j * kSumWidth * 4, _mm256_shuffle_epi8(table, _mm256_and_si256(packed[j], low)));
    store_octet(to + (j + 4) * kSumWidth * 4, _mm256_shuffle_epi8(table, _mm256_and_si256(odd, low)));
  }
}

// Scale bytes of four blocks, or of the `left` that there are.
KF_INLINE __m256i scale_quads(const OctetRows& rows, int block, int left) {
  alignas(32) uint32_t quads[kOctet] = {};
  for (int c = 0; c < kOctet; ++c) std::memcpy(&quads[c], rows.scales[c] + block, std::min(left, 4));
  return load_octet(quads);
}

inline void fold_entries(const IndexerTile& tile, int first, int count, EntryPanel& out) {
  const int blocks = tile.depth / kBlock;
  const __m256i lowest_read = _mm256_set1_epi32(kLowestRead), byte = _mm256_set1_epi32(0xFF);
  __m256i lowest = _mm256_set1_epi32(0xFF), highest = _mm256_setzero_si256(), refused = highest;
  for (int at = 0; at < kSumWidth; at += kOctet) {
    const OctetRows rows(tile, first + at, first + count);
    __m256i bytes[kFoldedDepth / kBlock], largest = lowest_read;
    for (int b = 0; b < blocks; b += 4) {
      __m256i quads = blocks - b < 4 ? scale_quads(rows, b, blocks - b) : scale_quads(rows, b, 4);
      for (int i = b; i < std::min(b + 4, blocks); ++i, quads = _mm256_srli_epi32(quads, 8)) {
        bytes[i] = _mm256_and_si256(quads, byte);
        largest = _mm256_max_epi32(largest, bytes[i]);
      }
    }
    const __m256i base = _mm256_sub_epi32(largest, _mm256_set1_epi32(kFoldBits));
    refused = _mm256_or_si256(refused, _mm256_cmpgt_epi32(largest, _mm256_set1_epi32(kHighestRead)));
    for (int b = 0; b < blocks; ++b) {
      // A scale below the base shifts by more than 31: the factor is zero too.
      const __m256i shift = _mm256_sub_epi32(bytes[b], base), zero = _mm256_cmpgt_epi32(lowest_read, bytes[b]);
      refused = _mm256_or_si256(refused, _mm256_andnot_si256(zero, _mm256_cmpgt_epi32(base, bytes[b])));
      const __m256i factor = _mm256_sllv_epi32(_mm256_set1_epi32(0x00010001), shift);
      store_octet(out.factor + b * kSumWidth + at, _mm256_andnot_si256(zero, factor));
      unpack_octet(rows, b, out.codes + (int64_t(b) * kQuartets * kSumWidth + at) * 4);
    }
    store_octet(out.scale + at, _mm256_slli_epi32(base, 23));
    lowest = _mm256_min_epi32(lowest, base);
    highest = _mm256_max_epi32(highest, base);
  }
  alignas(32) int32_t bounds[2][kOctet];
  store_octet(bounds[0], lowest);
  store_octet(bounds[1], highest);
  out.lowest = *std::min_element(bounds[0], bounds[0] + kOctet) - 127;
  out.highest = *std::max_element(bounds[1], bounds[1] + kOctet) - 127;
  out.usable = _mm256_testz_si256(refused, refused);
}

// bias[block][padded heads]: two 16-bit sums that take the entries' offset from a block's lanes.
inline void block_biases(const FoldedQuery& query, int ld, int blocks, int32_t* bias) {
  for (int b = 0; b < blocks; ++b) {
    const int32_t* codes = query.codes + int64_t(b) * kQuartets * ld;
    for (int h = 0; h < ld; h += kOctet) {
      __m256i sums = _mm256_setzero_si256();
      for (int j = 0; j < kQuartets; ++j) {
        const __m256i four = load_octet(codes + j * ld + h);
        sums = _mm256_sub_epi16(sums, _mm256_maddubs_epi16(_mm256_set1_epi8(kEntryOffset), four));
      }
      store_octet(bias + b * ld + h, sums);
    }
  }
}

// sums += products of unsigned and signed bytes, in pairs. Spelled out, and sums have names, because GCC 12 otherwise
// reorders the additions or copies what it adds to, and keeps products or sums in memory.
#define KF_ADD_PAIRS(sums, bytes, four)                      \
  {                                                          \
    const __m256i pairs = _mm256_maddubs_epi16(bytes, four); \
    asm("vpaddw %1, %0, %0" : "+x"(sums) : "x"(pairs));      \
  }
#define KF_BEGIN_HEAD(h) __m256i first##h = _mm256_set1_epi32(bias[h]), second##h = first##h;
#define KF_ADD_HEAD(h)                                \
  {                                                   \
    const __m256i four = _mm256_set1_epi32(codes[h]); \
    KF_ADD_PAIRS(first##h, w0, four)                  \
    KF_ADD_PAIRS(second##h, w1, four)                 \
  }
#define KF_END_HEAD(h) add_block(first##h, second##h, factors, dots[h]);
#define KF_EACH_HEAD(do) \
  do (0) do(1) do(2) do(3)

// dots += factors * a block's dots, of 16 entries.
KF_INLINE void add_block(__m256i first, __m256i second, const int32_t* factors, int32_t* dots) {
  const __m256i one = _mm256_madd_epi16(first, load_octet(factors));
  const __m256i two = _mm256_madd_epi16(second, load_octet(factors + kOctet));
  store_octet(dots, _mm256_add_epi32(load_octet(dots), one));
  store_octet(dots + kOctet, _mm256_add_epi32(load_octet(dots + kOctet), two));
}

KF_INLINE __m256 weighed(__m256i dots, __m256 weight) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_max_epi32(dots, _mm256_setzero_si256())), weight);
}

// products[h][kSumWidth] = weight[h] * relu(integer dot), for kDotHeads heads from `head` and 16 entries from `at`.
KF_INLINE void dot_products(const FoldedQuery& query, const int32_t* bias, const EntryPanel& panel, int head, int ld,
                            int at, int blocks, float* products) {
  static_assert(kDotHeads == 4, "KF_EACH_HEAD names four");
  alignas(32) int32_t dots[kDotHeads][kDotEntries] = {};
  const int32_t *codes = query.codes + head, *factors = panel.factor + at;
  const uint8_t* entries = panel.codes + at * 4;
  bias += head;
  for (int b = 0; b < blocks; ++b, bias += ld, factors += kSumWidth) {
    KF_EACH_HEAD(KF_BEGIN_HEAD)
#pragma GCC unroll 2
    for (int j = 0; j < kQuartets; ++j, codes += ld, entries += kSumWidth * 4) {
      const __m256i w0 = load_octet(entries), w1 = load_octet(entries + 32);
      KF_EACH_HEAD(KF_ADD_HEAD)
    }
    KF_EACH_HEAD(KF_END_HEAD)
  }
  for (int h = 0; h < kDotHeads; ++h) {
    const __m256 weight = _mm256_set1_ps(query.weight[head + h]);
    float* to = products + (head + h) * kSumWidth + at;
    _mm256_store_ps(to, weighed(load_octet(dots[h]), weight));
    _mm256_store_ps(to + kOctet, weighed(load_octet(dots[h] + kOctet), weight));
  }
}

#undef KF_ADD_PAIRS
#undef KF_BEGIN_HEAD
#undef KF_ADD_HEAD
#undef KF_END_HEAD
#undef KF_EACH_HEAD

// R(heads) of the products in lanes lane, lane + width, ... of kHeadLanes, by halves; -0 where all are.
template <int width>
KF_INLINE __m256 sum_octet(const float* products, int lane, int heads) {
  if constexpr (width == kHeadLanes) {
    __m256 sum = _mm256_load_ps(products + lane * kSumWidth);
    for (int h = lane + kHeadLanes; h < heads; h += kHeadLanes) {
      sum = _mm256_add_ps(sum, _mm256_load_ps(products + h * kSumWidth));
    }
    return sum;
  } else {
    const __m256 sum = sum_octet<2 * width>(products, lane, heads);
    if (lane + width >= heads) return sum;
    return _mm256_add_ps(sum, sum_octet<2 * width>(products, lane + width, heads));
  }
}

KF_INLINE __m256 sum_heads_of_octet(const float* products, int heads) {
  const auto row = [&](int h) KF_INLINE_LAMBDA { return _mm256_load_ps(products + h * kSumWidth); };
  if (heads == 4) return _mm256_add_ps(_mm256_add_ps(row(0), row(1)), _mm256_add_ps(row(2), row(3)));
  return sum_octet<1>(products, 0, heads);
}

inline void score_entries(const IndexerTile& tile, int query, const FoldedQuery& folded, const int32_t* bias,
                          const EntryPanel& panel, int first, int count, float* products) {
  const int ld = padded_heads(tile.heads), blocks = tile.depth / kBlock;
  for (int head = 0; head < tile.heads; head += kDotHeads) {
    for (int at = 0; at < count; at += kDotEntries) dot_products(folded, bias, panel, head, ld, at, blocks, products);
  }
  float* out = tile.scores + query * tile.ld_scores + first;
  for (int c = 0; c < count; c += kOctet) {
    const __m256 sums = sum_heads_of_octet(products + c, tile.heads);
    const __m256 scaled = _mm256_mul_ps(sums, _mm256_load_ps(panel.scale + c));
    alignas(32) float scores[kOctet];
    _mm256_store_ps(scores, _mm256_add_ps(scaled, _mm256_setzero_ps()));  // -0 + 0 is +0
    std::memcpy(out + c, scores, std::min(kOctet, count - c) * sizeof(float));
  }
}

inline int score_avx2(Isa isa, const IndexerTile& tile) {
  if (tile.depth > kFoldedDepth) return score_by_panels(isa, tile);
  const int ld = padded_heads(tile.heads), groups = tile.depth / 4, blocks = tile.depth / kBlock;
  Scratch& scratch = indexer_scratch();
  const size_t per_query = Scratch::round_up(size_t(ld) * groups * 4) + 2 * Scratch::round_up(size_t(ld) * 4) +
                           Scratch::round_up(size_t(ld) * blocks * 4);
  if (!scratch.reserve(tile.queries * per_query + size_t(groups + blocks + 1 + ld) * kSumWidth * 4 +
                       Scratch::round_up(tile.queries * sizeof(FoldedQuery)) +
                       Scratch::round_up(tile.queries * sizeof(int32_t*)))) {
    return kOutOfMemory;
  }
  FoldedQuery* queries = scratch.take<FoldedQuery>(tile.queries);
  int32_t** biases = scratch.take<int32_t*>(tile.queries);
  EntryPanel panel;
  panel.codes = scratch.take<uint8_t>(size_t(groups) * kSumWidth * 4);
  panel.factor = scratch.take<int32_t>(size_t(blocks) * kSumWidth);
  panel.scale = scratch.take<float>(kSumWidth);
  float* products = scratch.take<float>(size_t(ld) * kSumWidth);
  int entries = 0;
  for (int s = 0; s < tile.queries; ++s) {
    queries[s].codes = scratch.take<int32_t>(size_t(ld) * groups);
    queries[s].bias = scratch.take<int32_t>(ld);
    queries[s].weight = scratch.take<float>(ld);
    biases[s] = scratch.take<int32_t>(size_t(ld) * blocks);
    entries = std::max(entries, tile.seen(s));
    if (tile.seen(s) <= 0) continue;
    fold_query(tile, s, queries[s]);
    block_biases(queries[s], ld, blocks, biases[s]);
  }
  for (int first = 0; first < entries; first += kSumWidth) {
    fold_entries(tile, first, std::min(kSumWidth, entries - first), panel);
    for (int s = 0; s < tile.queries; ++s) {
      const int count = std::min(kSumWidth, tile.seen(s) - first);
      if (count <= 0) continue;
      if (commutes(queries[s], panel)) {
        score_entries(tile, s, queries[s], biases[s], panel, first, count, products);
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
