"""Number formats in NumPy: E2M1, E4M3, E8M0, bfloat16 and MX blocks.

``kernelforge.formats.tile`` holds the same conversions as expressions for TileLang kernels.
"""

from . import bf16, e2m1, e4m3, e8m0, mx

__all__ = ["bf16", "e2m1", "e4m3", "e8m0", "mx"]
