"""Choice of experts for the command line and the conformance suite."""

from __future__ import annotations

from ...backends.capabilities import FP32_IEEE, INT32
from ..spec import OpSpec

SPEC = OpSpec(
    name="route_topk",
    summary="experts and weights of each token from the router's logits",
    functions=("route_topk",),
    needs=frozenset({FP32_IEEE, INT32}),
    variants=("sqrt-softplus", "sigmoid", "softmax", "hash routing"),
    cases="conformance:cases",
    kernels="conformance:kernels",
)
