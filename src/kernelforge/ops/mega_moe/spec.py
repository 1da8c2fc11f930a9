"""Mixture of experts for the command line, the conformance suite and the benchmarks."""

from __future__ import annotations

from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="mega_moe",
    summary="a mixture-of-experts layer: dispatch, W4A8 feed-forward of every expert, combine",
    functions=("mega_moe",),
    needs=frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32}),
    variants=("MXFP4 weights, MXFP8 activations",),
    cases="conformance:cases",
    kernels="conformance:kernels",
    benchmark="benchmark:run",
)
