"""Passes from the portable TIR subset to TileLang's Ascend 950 dialect, in order.

Each is a function from PrimFunc to PrimFunc; the program means the same before and after.
"""

from kernelforge.backends.interface import Pass
from kernelforge.lowering import lower_composites, lower_rounded_dots, pin_fp32

from .. import scheduling
from . import cross_core_flags, hide_locals
from .balance_threads import balance_threads
from .decide_conditions import decide_conditions
from .declare_fp32 import declare_fp32
from .flatten_grid import flatten_grid
from .gemm_to_cube import gemm_to_cube
from .inline_bindings import inline_bindings
from .own_views import own_views
from .persistent_grid import persistent_grid
from .rewriter import LoweringError
from .split_rows import split_rows
from .stage_operands import stage_operands
from .vector_regions import vector_regions

scheduling.install()
cross_core_flags.install()
hide_locals.install()

PIPELINE: tuple[Pass, ...] = (
    lower_rounded_dots,
    lower_composites,
    flatten_grid,
    persistent_grid,
    inline_bindings,
    gemm_to_cube,
    stage_operands,
    vector_regions,
    split_rows,
    balance_threads,
    pin_fp32,
    declare_fp32,
    own_views,
    decide_conditions,
)

__all__ = [
    "PIPELINE",
    "LoweringError",
    "balance_threads",
    "decide_conditions",
    "declare_fp32",
    "flatten_grid",
    "gemm_to_cube",
    "inline_bindings",
    "own_views",
    "persistent_grid",
    "split_rows",
    "stage_operands",
    "vector_regions",
]
