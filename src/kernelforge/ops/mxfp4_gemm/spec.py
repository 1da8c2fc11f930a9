"""MXFP4 GEMM for the command line, the conformance suite and the benchmarks."""

from __future__ import annotations

from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="mxfp4_gemm",
    summary="out[M, N] = A[M, K] W[N, K]^T with MXFP4 weights, dense and grouped by expert",
    functions=("mxfp4_gemm", "grouped_mxfp4_gemm"),
    needs=frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32}),
    variants=("W4A4", "W4A8 (E8M0 scales)", "W4A8 (fp32 scales)", "W4A16"),
    cases="conformance:cases",
    kernels="conformance:kernels",
    benchmark="benchmark:run",
)
