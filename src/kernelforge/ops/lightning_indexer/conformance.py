"""Conformance cases of the lightning indexer, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats.mx import BLOCK
from ...runtime import KernelSpec, schedule
from ..spec import Arrays, Case, seeded
from . import reference

if TYPE_CHECKING:
    import torch

DATA = (
    *("normal", "codes", "ties", "zeros", "scale_zero", "scale_nan", "infinity", "huge", "tiny", "special_weights"),
    *("close", "close_extreme"),
)
"""``normal`` is random values of ordinary size, ``codes`` uniformly random bytes; the others set one thing on top.
``ties``: few different keys, so that many scores are equal. ``close``: a row's scales lie within three binades, some
are zero; ``close_extreme``: and may be as large or small as scales are, as may the weights."""

LENGTHS = ("all", "causal", "ragged", "none")


@dataclass(frozen=True)
class Problem:
    """Shapes and data of a case; ``lengths`` is what queries see."""

    B: int
    S: int
    T: int
    H: int
    D: int
    topk: int
    data: str
    lengths: str
    seed: int

    @property
    def name(self) -> str:
        shape = f"{self.B}x{self.S}x{self.T}/h{self.H}x{self.D}/top{self.topk}"
        return f"select/{shape}/{self.data}/{self.lengths}"


@dataclass(frozen=True)
class Operands:
    """The reference's operands, with a leading batch axis."""

    q: NDArray[np.uint8]
    q_scale: NDArray[np.uint8]
    k: NDArray[np.uint8]
    k_scale: NDArray[np.uint8]
    weights: NDArray[np.float32]
    kv_len: NDArray[np.int32]


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: two kernels, every kind of data and of lengths. ``full``: many shapes."""
    for problem in _ci(seed) if size == "ci" else _full(seed):
        yield Case(problem.name, functools.partial(_expected, problem), functools.partial(_run, problem))
        logits = problem.name.replace("select", "logits")
        yield Case(logits, functools.partial(_expected_logits, problem), functools.partial(_run_logits, problem))


def _ci(seed: int) -> Iterator[Problem]:
    for data in DATA:
        yield Problem(2, 3, 70, 16, 64, 12, data, "ragged", seed)
    for lengths in LENGTHS:
        yield Problem(1, 5, 130, 16, 64, 12, "normal", lengths, seed)
    yield Problem(1, 1, 1, 16, 64, 12, "normal", "all", seed)
    yield Problem(1, 0, 5, 16, 64, 12, "normal", "all", seed)
    yield Problem(2, 2, 0, 16, 64, 12, "normal", "all", seed)


def _full(seed: int) -> Iterator[Problem]:
    for H, D in ((1, 32), (4, 64), (24, 96), (64, 128)):
        for topk in (1, 12, 100):
            for B, S, T in ((1, 1, 1), (1, 1, 700), (2, 5, 130), (3, 2, 257)):
                for data in DATA:
                    yield Problem(B, S, T, H, D, topk, data, "ragged", seed)


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """DeepSeek-V4's indexers."""
    from .op import KERNELS, NEEDS

    found = {}
    for name, topk in (("flash", 512), ("pro", 1024)):
        problem = {"B": 1, "S": 1, "T": 1 << 18, "H": 64, "D": 128, "topk": topk}
        tiles = dict(schedule("lightning_indexer", device, kernel="lightning_indexer", **problem))
        del tiles["piece"], tiles["most_blocks"]
        for final in (True, False):
            variant = name if final else f"{name}-piece"
            found[variant] = KernelSpec.of(
                f"{KERNELS}:lightning_indexer", NEEDS, H=64, D=128, topk=topk, final=final, **tiles
            )
        merging = schedule("lightning_indexer", device, kernel="merge_selections", **problem)
        found[f"{name}-merge"] = KernelSpec.of(f"{KERNELS}:merge_selections", NEEDS, topk=topk, **merging)
    tiles = dict(schedule("lightning_indexer", device, kernel="indexer_logits", **problem))
    found["logits"] = KernelSpec.of(f"{KERNELS}:indexer_logits", NEEDS, H=64, D=128, out_dtype="bfloat16", **tiles)
    return found


@functools.lru_cache(maxsize=128)
def operands(problem: Problem) -> Operands:
    """Operands drawn from the problem's name and seed alone."""
    draw = seeded(problem.seed, problem.name)
    B, S, T, H, D = problem.B, problem.S, problem.T, problem.H, problem.D
    q, q_scale = _packed(draw, (B, S, H), D, problem.data)
    k, k_scale = _packed(draw, (B, T), D, problem.data)
    if problem.data == "ties":
        again = draw.integers(0, min(T, 3), (B, T)) if T else np.zeros((B, 0), np.int64)
        k, k_scale = np.take_along_axis(k, again[..., None], 1), np.take_along_axis(k_scale, again[..., None], 1)
    weights = draw.standard_normal((B, S, H)).astype(np.float32)
    if problem.data == "codes":
        weights = draw.integers(0, 1 << 32, (B, S, H), dtype=np.uint32).view(np.float32)
    if problem.data == "special_weights":
        special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, 2.0**-49, 1e38], np.float32)
        weights[..., ::5] = special[draw.integers(0, special.size, weights[..., ::5].shape)]
    if problem.data == "close_extreme":
        weights = np.ldexp(weights, draw.integers(-60, 70, (B, S, 1))).astype(np.float32)
    return Operands(q, q_scale, k, k_scale, weights, _lengths(draw, problem))


def _lengths(draw: np.random.Generator, problem: Problem) -> NDArray[np.int32]:
    B, S, T = problem.B, problem.S, problem.T
    if problem.lengths == "all":
        seen = np.full((B, S), T)
    elif problem.lengths == "none":
        seen = np.zeros((B, S), np.int64)
    elif problem.lengths == "causal":
        seen = np.broadcast_to((np.arange(S) + 1) * max(T // max(S, 1), 1), (B, S))
    else:
        seen = draw.integers(-2, T + 3, (B, S))
    return np.ascontiguousarray(seen, np.int32)


def _packed(
    draw: np.random.Generator, rows: tuple[int, ...], D: int, data: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    packed = draw.integers(0, 256, (*rows, D // 2)).astype(np.uint8)
    if data == "zeros":
        packed = packed & np.uint8(0x88)  # both zeros
    low, high = {"codes": (0, 256), "huge": (180, 201), "tiny": (70, 90)}.get(data, (120, 134))
    scale = draw.integers(low, high, (*rows, D // BLOCK)).astype(np.uint8)
    if data.startswith("close"):
        base = draw.integers(*((60, 200) if data == "close_extreme" else (124, 126)), (*rows[:-1], 1, 1))
        scale = (base + draw.integers(0, 4, scale.shape)).astype(np.uint8)
        scale[draw.random(scale.shape) < 0.05] = 0
    if data == "scale_zero":
        scale.reshape(-1)[::3] = 0
    if data == "scale_nan":
        scale.reshape(-1)[::97] = 0xFF
    if data == "infinity":
        scale.reshape(-1)[::53] = 0xFE  # reads as infinite
    return packed, scale


def _each(given: Operands) -> Iterator[Operands]:
    """The operands of one sequence after the other."""
    for b in range(given.q.shape[0]):
        yield Operands(given.q[b], given.q_scale[b], given.k[b], given.k_scale[b], given.weights[b], given.kv_len[b])


def _expected(problem: Problem) -> Arrays:
    chosen = [
        reference.lightning_indexer(x.q, x.q_scale, x.k, x.k_scale, x.weights, problem.topk, x.kv_len)
        for x in _each(operands(problem))
    ]
    return {"index": np.stack([index for index, _ in chosen]), "score": np.stack([score for _, score in chosen])}


def _expected_logits(problem: Problem) -> Arrays:
    each = _each(operands(problem))
    scores = [reference.indexer_logits(x.q, x.q_scale, x.k, x.k_scale, x.weights, x.kv_len) for x in each]
    return {"logits": np.stack(scores)}


class Tensors(NamedTuple):
    """The operands where the device wants them."""

    q: torch.Tensor
    q_scale: torch.Tensor
    k: torch.Tensor
    k_scale: torch.Tensor
    weights: torch.Tensor
    kv_len: torch.Tensor


def _tensors(problem: Problem, device: str) -> Tensors:
    import torch

    from ... import backends

    owner, chosen = backends.device(device)
    home = "cpu" if chosen.virtual else owner.tensor_device
    given = operands(problem)
    arrays = (given.q, given.q_scale, given.k, given.k_scale, given.weights, given.kv_len)
    return Tensors(*(torch.from_numpy(np.ascontiguousarray(x)).to(home) for x in arrays))


def _run(problem: Problem, device: str) -> Arrays:
    import torch

    from .op import lightning_indexer

    x = _tensors(problem, device)
    index, score = lightning_indexer(
        x.q, x.q_scale, x.k, x.k_scale, x.weights, problem.topk, x.kv_len, True, backend=device
    )
    return {"index": index.cpu().numpy(), "score": score.cpu().view(torch.uint16).numpy()}


def _run_logits(problem: Problem, device: str) -> Arrays:
    import torch

    from .op import indexer_logits

    x = _tensors(problem, device)
    logits = indexer_logits(x.q, x.q_scale, x.k, x.k_scale, x.weights, x.kv_len, backend=device)
    return {"logits": logits.cpu().view(torch.uint16).numpy()}
