"""The lightning indexer for the command line, the conformance suite and the benchmarks."""

from __future__ import annotations

from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="lightning_indexer",
    summary="the top-k compressed entries of every query by relu-weighted multi-head scores",
    functions=("lightning_indexer", "indexer_logits"),
    needs=frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32}),
    modes=("exact", "native"),
    variants=("FP4 queries and keys", "BF16 queries and keys"),
    cases="conformance:cases",
    kernels="conformance:kernels",
    benchmark="benchmark:run",
)
