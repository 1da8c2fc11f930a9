#include "kernelforge_cpu.h"
#include "mx/engines.h"

KF_MX_BLOCK_ACCUMULATE(kf_mx_block_accumulate_e2m1, kf::kE2m1)
