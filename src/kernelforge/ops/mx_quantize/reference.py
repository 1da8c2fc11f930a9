"""Quantization to MX blocks and back: the reference, which defines the bits (contract C8).

Inputs are float32 arrays: bfloat16 and float16 inputs convert to float32 exactly before anything is rounded.
"""

from __future__ import annotations

from ...formats.mx import dequantize_mxfp4, quantize_mxfp4, quantize_mxfp8
from ..mxfp4_gemm.reference import round_output

__all__ = ["dequantize_mxfp4", "quantize_mxfp4", "quantize_mxfp8", "round_output"]
