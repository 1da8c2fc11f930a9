"""Portable TIR to what TileLang's CUDA pipeline accepts, in order.

The portable subset is TileLang's own GPU style, so composites only have to be opened: layouts, pipelining, asynchronous
copies and the choice of tensor-core instruction are TileLang's. Sums need no pass here, unlike on CPU and Ascend: the
verifier refuses the patterns that the simplifier cancels, constants are printed in hexadecimal, and nvcc is told to
round every operation on its own (``nvcc.EXACT_FLAGS``).
"""

from kernelforge.lowering import lower_composites

from .separate_products import separate_products

PIPELINE = (lower_composites, separate_products)

__all__ = ["PIPELINE", "lower_composites", "separate_products"]
