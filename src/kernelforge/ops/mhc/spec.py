"""Hyper-connections for the command line, the conformance suite and the benchmarks."""

from __future__ import annotations

from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="mhc",
    summary="manifold-constrained hyper-connections around a block, forward and backward",
    functions=("mhc_pre", "mhc_post", "mhc_head"),
    needs=frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32}),
    variants=("bfloat16 streams", "float32 streams"),
    cases="conformance:cases",
    kernels="conformance:kernels",
    benchmark="benchmark:run",
)
