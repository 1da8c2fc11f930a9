// Stands in for TileLang's header of the same name when generated AscendC is compiled for the virtual device.
#pragma once

#include "c_api/asc_simd.h"
#include "kf_virtual/simt.h"
