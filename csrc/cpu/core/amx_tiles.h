// The tile registers of AMX.
#pragma once

#include "core/isa.h"

#if defined(KF_X86)
KF_TARGET_BEGIN(
    "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-bf16,amx-int8,prefer-vector-width=512")
namespace kf {
namespace {

struct AmxConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Configures the eight tiles as 16 x 64 bytes for the scope.
class AmxTiles {
 public:
  KF_INLINE AmxTiles() {
    alignas(64) AmxConfig config;
    for (int i = 0; i < 8; ++i) {
      config.column_bytes[i] = 64;
      config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
  }
  KF_INLINE ~AmxTiles() { _tile_release(); }
};

}  // namespace
}  // namespace kf
KF_TARGET_END
#endif
