"""Compressed attention for the command line, the conformance suite and the benchmarks."""

from __future__ import annotations

from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="compressed_attention",
    summary="attention over a window, compressed entries (CSA: selected, HCA: all complete ones) and a sink",
    functions=("csa_attention", "hca_attention"),
    needs=frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32}),
    modes=("exact", "native"),
    variants=("CSA", "HCA"),
    cases="conformance:cases",
    kernels="conformance:kernels",
    benchmark="benchmark:run",
)
