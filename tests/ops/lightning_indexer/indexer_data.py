"""Operands for the indexer's tests: NumPy for the reference, torch tensors of the same memory for the op."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

import kernelforge as kf
from kernelforge.ops.lightning_indexer import reference as ref
from kernelforge.ops.lightning_indexer.conformance import BF16_DATA, DATA, Problem, operands, sequence, tensors

H, D, TOPK = 16, 64, 12
"""The kernels of the conformance suite, so that tests compile few of their own."""

FORMATS = {"e2m1": DATA, "bf16": BF16_DATA}
"""Kinds of data by the format of queries and keys."""


class Call(NamedTuple):
    """One call's operands."""

    q: torch.Tensor
    q_scale: torch.Tensor | None
    k: torch.Tensor
    k_scale: torch.Tensor | None
    weights: torch.Tensor
    kv_len: torch.Tensor | None

    def run(self, topk: int = TOPK, backend: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return kf.lightning_indexer(*self[:5], topk, self.kv_len, True, backend=backend)

    def logits(self, out_dtype: torch.dtype = torch.bfloat16, backend: str | None = None) -> torch.Tensor:
        return kf.indexer_logits(*self, out_dtype, backend=backend)

    def queries(self, index: object) -> Call:
        """The same call for some of an unbatched call's queries."""
        names = [name for name in ("q", "q_scale", "weights", "kv_len") if getattr(self, name) is not None]
        return self._replace(**{name: getattr(self, name)[index].contiguous() for name in names})


def draw(
    S: int,
    T: int,
    data: str = "normal",
    lengths: str = "ragged",
    seed: int = 0,
    heads: int = H,
    depth: int = D,
    qk_format: str = "e2m1",
) -> Call:
    """One sequence of the conformance suite's kind."""
    given = operands(Problem(1, S, T, heads, depth, TOPK, data, lengths, seed, qk_format))
    # A copy: the operands are kept, and tests write to theirs.
    return Call(*(None if x is None else x.clone() for x in tensors(sequence(given, 0))))


def arrays(call: Call) -> list[np.ndarray | None]:
    """The reference's operands; bfloat16 as bits."""
    found = []
    for x in call:
        found.append(None if x is None else (x.view(torch.uint16) if is_bf16(x) else x).numpy())
    return found


def expected(call: Call, topk: int = TOPK) -> tuple[np.ndarray, np.ndarray]:
    """The reference's indices and bfloat16 bits."""
    q, q_scale, k, k_scale, weights, kv_len = arrays(call)
    seen = np.full(q.shape[0], k.shape[0]) if kv_len is None else kv_len
    return ref.lightning_indexer(q, q_scale, k, k_scale, weights, topk, seen)


def assert_same(given: tuple[torch.Tensor, torch.Tensor], wanted: tuple) -> None:
    """Indices and the bits of scores."""
    for one, other in zip(given, wanted, strict=True):
        left, right = (x.view(torch.uint16).numpy() if is_bf16(x) else np.asarray(x) for x in (one, other))
        np.testing.assert_array_equal(left, right)


def is_bf16(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16


def values_of_kind(kind: str, S: int = 6, T: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """bfloat16 queries [S, H, D] and keys [T, D], float32 weights, for comparisons with float64."""
    random = np.random.default_rng(7)

    def values(*shape: int) -> torch.Tensor:
        x = random.standard_t(3, shape) if kind == "student" else random.standard_normal(shape)
        return torch.from_numpy(x)

    q, k = values(S, H, D), values(T, D)
    if "outliers" in kind:
        channels = torch.from_numpy(random.permutation(D))
        q[..., channels[:4]] *= 100
        k[..., channels[:4] if kind == "outliers" else channels[4:8]] *= 100
    return q.bfloat16(), k.bfloat16(), (values(S, H) * (H * D) ** -0.5).float()
