"""Portable TIR to what TileLang's CUDA pipeline accepts, in order.

The portable subset is TileLang's own GPU style, so most composites only have to be opened: layouts, pipelining,
asynchronous copies and the choice of tensor-core instruction are TileLang's. Tensor cores take the products of native
mode as bfloat16, and, where the instruction set scales bfloat16 numbers, MX block accumulation by a device function.
Sums need no pass here, unlike on CPU and Ascend: the verifier refuses the patterns that the simplifier cancels,
constants are printed in hexadecimal, and nvcc is told to round every operation on its own (``nvcc.EXACT_FLAGS``).
"""

from kernelforge.lowering import lower_composites, lower_rounded_dots

from .long_axis_first import long_axis_first
from .mx_blocks import take_mx_blocks
from .separate_products import separate_products

PIPELINE = (lower_rounded_dots, lower_composites, separate_products, long_axis_first)
BF16_PIPELINE = (lower_rounded_dots, take_mx_blocks, lower_composites, separate_products, long_axis_first)
"""From compute capability 9.0 on, whose instructions multiply and add bfloat16 numbers outside of tensor cores too."""

__all__ = [
    "BF16_PIPELINE",
    "PIPELINE",
    "long_axis_first",
    "lower_composites",
    "lower_rounded_dots",
    "separate_products",
    "take_mx_blocks",
]
