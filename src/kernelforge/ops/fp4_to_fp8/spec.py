"""MXFP4 to FP8 for the command line and the conformance suite."""

from __future__ import annotations

from ...backends.capabilities import FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="fp4_to_fp8",
    summary="MXFP4 weights as E4M3 under coarser power-of-two scales: the same values exactly, or an error",
    functions=("fp4_to_fp8",),
    needs=frozenset({FP32_IEEE, INT32}),
    variants=("groups 1 x 128", "groups 128 x 128"),
    cases="conformance:cases",
    kernels="conformance:kernels",
)
