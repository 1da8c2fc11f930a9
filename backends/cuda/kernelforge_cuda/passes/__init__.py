"""Portable TIR to what TileLang's CUDA pipeline accepts, in order.

The portable subset is TileLang's own GPU style, so composites only have to be opened, but for the products of native
mode, which tensor cores take as bfloat16: layouts, pipelining, asynchronous
copies and the choice of tensor-core instruction are TileLang's. Sums need no pass here, unlike on CPU and Ascend: the
verifier refuses the patterns that the simplifier cancels, constants are printed in hexadecimal, and nvcc is told to
round every operation on its own (``nvcc.EXACT_FLAGS``).
"""

from kernelforge.lowering import lower_composites, lower_rounded_dots

from .long_axis_first import long_axis_first
from .separate_products import separate_products

PIPELINE = (lower_rounded_dots, lower_composites, separate_products, long_axis_first)

__all__ = ["PIPELINE", "long_axis_first", "lower_composites", "lower_rounded_dots", "separate_products"]
