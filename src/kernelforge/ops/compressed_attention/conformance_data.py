"""Operands of compressed attention's conformance cases."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ..spec import seeded

if TYPE_CHECKING:
    import torch

DATA = (
    *("normal", "student", "outlier", "zeros", "subnormal", "bits", "huge", "tiny"),
    *("nan_query", "nan_entry", "infinite_entry", "sinks", "unseen"),
)
"""``bits`` is uniformly random bit patterns; ``sinks`` are NaN, both infinities and zeros; in ``unseen`` no query sees
anything."""


@dataclass(frozen=True)
class Problem:
    """Shapes and data of a case.

    ``topk`` 0 is HCA; ``page`` 0 are entries side by side; ``first`` is the position of the first query.
    """

    B: int
    S: int
    H: int
    D: int
    T: int
    N: int
    window: int
    ratio: int
    topk: int
    page: int
    rope: int
    first: int
    data: str
    seed: int

    @property
    def name(self) -> str:
        kind = f"csa{self.topk}" if self.topk else f"hca{self.ratio}"
        layout = f"page{self.page}" if self.page else "dense"
        shape = f"{self.B}x{self.S}x{self.H}x{self.D}/T{self.T}/N{self.N}/W{self.window}/R{self.rope}"
        return f"{kind}/{layout}/{shape}/from{self.first}/{self.data}"


@dataclass(frozen=True)
class Operands:
    """The reference's operands; ``pages`` int32 [B, n] is where the kernel finds each batch row's entries."""

    q: NDArray[np.uint16]
    kv: NDArray[np.uint16]
    entries: NDArray[np.uint16]
    indices: NDArray[np.int32] | None
    sink: NDArray[np.float32]
    positions: NDArray[np.int32]
    kv_start: NDArray[np.int32]
    pages: NDArray[np.int32] | None
    cos: NDArray[np.float32] | None
    sin: NDArray[np.float32] | None

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5)


def csa(seed: int, data: str = "normal", **changes: Any) -> Problem:
    """Selected entries, unrotated output: one prefill kernel for every problem that changes no static extent."""
    return replace(Problem(2, 9, 6, 64, 137, 200, 128, 4, 140, 0, 16, 128, data, seed), **changes)


def hca(seed: int, data: str = "normal", **changes: Any) -> Problem:
    """All complete entries of a paged cache, few queries: the kernels of split decode."""
    return replace(Problem(3, 2, 6, 64, 130, 160, 128, 2, 0, 16, 0, 300, data, seed), **changes)


def _values(draw: np.random.Generator, shape: tuple[int, ...], data: str) -> NDArray[np.uint16]:
    if data == "bits":
        return draw.integers(0, 1 << 16, shape).astype(np.uint16)
    x = draw.standard_t(3, shape) if data == "student" else draw.standard_normal(shape)
    if data == "outlier":
        x[..., : max(1, shape[-1] // 16)] *= 100
    x = x * {"zeros": 0.0, "subnormal": 2.0**-130, "huge": 2.0**62, "tiny": 2.0**-48}.get(data, 1.0)
    return bf16.encode(x.astype(np.float32))


@functools.lru_cache(maxsize=64)
def operands(problem: Problem) -> Operands:
    """Operands drawn from the problem's name and seed alone."""
    p = problem
    draw = seeded(p.seed, p.name)
    q, kv, entries = (
        _values(draw, shape, p.data) for shape in ((p.B, p.S, p.H, p.D), (p.B, p.T, p.D), (p.B, p.N, p.D))
    )
    sink = draw.standard_normal(p.H).astype(np.float32)
    if p.data == "nan_query":
        q.reshape(-1)[:: 7 * p.D + 1] = 0x7FC1
    if p.data in ("nan_entry", "infinite_entry"):
        for rows in (kv, entries):
            rows.reshape(-1)[5 :: 60 * p.D] = 0xFF81 if p.data == "nan_entry" else 0xFF80
    if p.data == "zeros":
        entries[:, ::2, :] = bf16.encode(np.full(1, 0.5, np.float32))[0]  # beside rows of zeros, which have no exponent
    if p.data == "sinks":
        sink[:] = np.resize(np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 90.0], np.float32), p.H)
    positions = np.stack([p.first + 3 * b + np.arange(p.S) for b in range(p.B)]).astype(np.int32)
    kv_start = positions.max(-1, initial=0) - p.T + 1
    if p.data == "unseen":
        positions[...] = -1
    elif p.S > 1:
        positions[-1, 0] = -1  # padding
    indices = None
    if p.topk:
        found = np.argsort(draw.random((p.B, p.S, max(p.N, p.topk))), -1)[..., : p.topk]
        keep = draw.integers(0, p.topk + 1, (p.B, p.S, 1))
        keep.reshape(-1)[:1] = p.topk
        indices = np.where((np.arange(p.topk) < keep) & (found < p.N), found, -1).astype(np.int32)
    pages = None
    if p.page:
        each = -(-p.N // p.page)
        pages = draw.permutation(p.B * each + 3)[: p.B * each].reshape(p.B, each).astype(np.int32)
    cos = sin = None
    if p.rope:
        angle = draw.uniform(0, 7, (p.B, p.S, p.rope // 2))
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return Operands(q, kv, entries, indices, sink, positions, kv_start.astype(np.int32), pages, cos, sin)


def paged(entries: NDArray[np.uint16], pages: NDArray[np.int32], page: int) -> NDArray[np.uint16]:
    """A cache that holds each batch row's entries in its pages; unused places hold NaN."""
    B, N, D = entries.shape
    cache = np.full((pages.size + 3, page, D), 0x7FC0, np.uint16)
    for b in range(B):
        for i in range(N):
            cache[pages[b, i // page], i % page] = entries[b, i]
    return cache


def tensor(array: NDArray[Any] | None, home: str) -> Any:
    """The tensor of an array on a torch device; bits of 16 as bfloat16."""
    import torch

    if array is None:
        return None
    made = torch.from_numpy(np.ascontiguousarray(array)).to(home)
    return made.view(torch.bfloat16) if array.dtype == np.uint16 else made


def bits(out: torch.Tensor) -> NDArray[np.uint16]:
    """bfloat16 as NumPy holds it."""
    import torch

    array: NDArray[np.uint16] = out.cpu().view(torch.uint16).numpy()
    return array
