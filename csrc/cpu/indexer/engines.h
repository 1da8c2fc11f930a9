// Every engine of the indexer's scores, and the choice among them.
#pragma once

#include "indexer/avx2.h"
#include "indexer/vnni.h"

namespace kf {
namespace {

inline int indexer_scores(Isa isa, const IndexerTile& tile) {
  if (tile.queries < 0 || tile.entries < 0 || tile.heads <= 0 || tile.depth % kBlock != 0) return kBadArgument;
  if (isa == Isa::kMissing) return kIsaMissing;
#if defined(KF_X86)
  if (isa >= Isa::kAvx512Bf16) return score_vnni(isa, tile);
  if (isa == Isa::kAvx2) return score_avx2(isa, tile);
#endif
  return score_by_panels(isa, tile);
}

}  // namespace
}  // namespace kf
