#include "kernelforge_cpu.h"
#include "mx/engines.h"

KF_MX_BLOCK_ACCUMULATE(kf_mx_block_accumulate_bf16, kf::kBf16)
