"""Portable TIR to what TileLang's "c" pipeline accepts, in order."""

from kernelforge.lowering import pin_fp32

from . import gemm as gemm  # registers the exact-dot gemm with TileLang
from .block_parameters import block_parameters
from .fuse_block_accumulate import fuse_block_accumulate
from .host_memory import host_memory

PIPELINE = (fuse_block_accumulate, block_parameters, host_memory, pin_fp32)
