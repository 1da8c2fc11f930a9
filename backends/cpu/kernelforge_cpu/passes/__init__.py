"""Portable TIR to what TileLang's "c" pipeline accepts, in order."""

from kernelforge.lowering import pin_fp32

from . import gemm as gemm  # registers the exact-dot gemm with TileLang
from .block_parameters import block_parameters
from .clear_in_place import clear_in_place
from .fuse_attention import fuse_attention
from .fuse_block_accumulate import fuse_block_accumulate
from .hoist_conditions import hoist_conditions
from .host_memory import host_memory
from .state_block_range import state_block_range
from .store_results import store_results
from .take_indexer import take_indexer
from .take_rounded_dot import take_rounded_dot
from .take_sliced_dot import take_sliced_dot
from .take_streams import take_streams
from .take_weighted_mean import take_weighted_mean
from .unroll_loops import unroll_loops

PIPELINE = (
    fuse_attention,
    take_rounded_dot,
    take_indexer,
    take_streams,
    take_weighted_mean,
    take_sliced_dot,
    fuse_block_accumulate,
    clear_in_place,
    store_results,
    state_block_range,
    block_parameters,
    unroll_loops,
    hoist_conditions,
    host_memory,
    pin_fp32,
)
