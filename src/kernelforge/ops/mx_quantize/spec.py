"""MX quantization for the command line and the conformance suite."""

from __future__ import annotations

from ...backends.capabilities import FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="mx_quantize",
    summary="float32, bfloat16 and float16 to MXFP4 and MXFP8 blocks of 32, and MXFP4 back",
    functions=("quantize_mxfp4", "quantize_mxfp8", "dequantize_mxfp4"),
    needs=frozenset({FP32_IEEE, INT32}),
    variants=("MXFP4", "MXFP8", "scale rules ceil and floor (OCP)"),
    cases="conformance:cases",
    kernels="conformance:kernels",
)
