"""The grouped output projection for the command line and the conformance suite."""

from __future__ import annotations

from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="grouped_projection",
    summary="heads in groups, each group to its rank, all ranks to the hidden size; BF16 or MXFP4 weights",
    functions=("grouped_output_projection",),
    needs=frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32}),
    variants=("BF16 weights", "MXFP4 weights"),
    cases="conformance:cases",
    kernels="conformance:kernels",
    benchmark="benchmark:run",
)
