#include "kernelforge_cpu.h"
#include "mx/engines.h"

KF_MX_BLOCK_ACCUMULATE(kf_mx_block_accumulate_e4m3_f32, kf::kE4m3F32)
