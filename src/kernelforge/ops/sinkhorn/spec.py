"""Sinkhorn normalization for the command line, the conformance suite and the benchmarks."""

from __future__ import annotations

from ...backends.capabilities import FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="sinkhorn",
    summary="doubly stochastic n x n matrices from logits, forward and backward",
    functions=("sinkhorn",),
    needs=frozenset({FP32_IEEE, INT32}),
    variants=("forward", "backward"),
    cases="conformance:cases",
    kernels="conformance:kernels",
    benchmark="benchmark:run",
)
