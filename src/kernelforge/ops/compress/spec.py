"""Compression for the command line, the conformance suite and the benchmarks."""

from __future__ import annotations

from ...backends.capabilities import FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="compress",
    summary="one entry per window of tokens: softmax over slots, RMS norm, RoPE; CSA (overlapping windows) and HCA",
    functions=("csa_compress", "hca_compress"),
    needs=frozenset({FP32_IEEE, INT32}),
    variants=("CSA", "HCA", "float32", "bfloat16"),
    cases="conformance:cases",
    kernels="conformance:kernels",
    benchmark="benchmark:run",
)
