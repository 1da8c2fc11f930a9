"""Conformance cases of the lightning indexer, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
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

BF16_DATA = ("normal", "ties", "zeros", "bits", "special", "huge", "tiny", "special_weights", "close_extreme")
"""For bfloat16 queries and keys: ``bits`` are uniformly random, ``special`` puts infinities, NaN, zeros and the ends of
what is read among ordinary values."""

GRADIENTS = ("dq", "dk", "dweights")
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
    qk_format: str = "e2m1"

    @property
    def name(self) -> str:
        shape = f"{self.B}x{self.S}x{self.T}/h{self.H}x{self.D}/top{self.topk}"
        return f"select/{self.qk_format}/{shape}/{self.data}/{self.lengths}"


@dataclass(frozen=True)
class Operands:
    """The reference's operands, with a leading batch axis."""

    q: NDArray[Any]
    q_scale: NDArray[np.uint8] | None
    k: NDArray[Any]
    k_scale: NDArray[np.uint8] | None
    weights: NDArray[np.float32]
    kv_len: NDArray[np.int32]


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: six kernels, every kind of data and of lengths. ``full``: many shapes, and bfloat16's logits and
    gradients, whose kernels differ from FP4's in what the selection's do."""
    for problem in _ci(seed) if size == "ci" else _full(seed):
        yield Case(problem.name, functools.partial(_expected, problem), functools.partial(_run, problem))
        for what, expected, run in (
            ("logits", _expected_logits, _run_logits),
            ("gradients", _expected_gradients, _run_gradients),
        ):
            if size == "ci" and problem.qk_format == "bf16":
                continue
            name = problem.name.replace("select", what)
            yield Case(name, functools.partial(expected, problem), functools.partial(run, problem))


def _ci(seed: int) -> Iterator[Problem]:
    for data in DATA:
        yield Problem(2, 3, 70, 16, 64, 12, data, "ragged", seed)
    for data in BF16_DATA:
        yield Problem(2, 3, 70, 16, 64, 12, data, "ragged", seed, "bf16")
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
                for data in BF16_DATA:
                    yield Problem(B, S, T, H, D, topk, data, "ragged", seed, "bf16")


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """DeepSeek-V4's indexers, in FP4 and in bfloat16."""
    from .plans import BACKWARD_KERNELS, KERNELS, NEEDS

    found = {}

    def add(variant: str, builder: str, problem: Mapping[str, Any], **parameters: Any) -> None:
        kernel = builder.partition(":")[2]
        tiles = dict(schedule("lightning_indexer", device, kernel=kernel, **problem))
        for only_planned in ("piece", "most_blocks"):
            tiles.pop(only_planned, None)
        found[variant] = KernelSpec.of(builder, NEEDS, **parameters, **tiles)

    for qk_format, suffix in (("e2m1", ""), ("bf16", "-bf16")):
        shape: dict[str, Any] = {"H": 64, "D": 128, "qk_format": qk_format}
        for name, topk in (("flash", 512), ("pro", 1024)):
            problem = {"B": 1, "S": 1, "T": 1 << 18, "topk": topk, **shape}
            add(name + suffix, f"{KERNELS}:lightning_indexer", problem, **shape, topk=topk, final=True)
            add(f"{name}-piece{suffix}", f"{KERNELS}:lightning_indexer", problem, **shape, topk=topk, final=False)
            if not suffix:
                add(f"{name}-merge", f"{KERNELS}:merge_selections", problem, topk=topk)
        add("logits" + suffix, f"{KERNELS}:indexer_logits", problem, **shape, out_dtype="bfloat16")
        for kernel in ("query_gradient", "entry_gradient"):
            variant = kernel.replace("_", "-") + suffix
            add(variant, f"{BACKWARD_KERNELS}:{kernel}", problem, **shape, dtype="bfloat16")
    return found


@functools.lru_cache(maxsize=128)
def operands(problem: Problem) -> Operands:
    """Operands drawn from the problem's name and seed alone."""
    draw = seeded(problem.seed, problem.name)
    B, S, T, H, D = problem.B, problem.S, problem.T, problem.H, problem.D
    (q, q_scale), (k, k_scale) = (_rows(draw, rows, D, problem) for rows in ((B, S, H), (B, T)))
    if problem.data == "ties":
        again = draw.integers(0, min(T, 3), (B, T)) if T else np.zeros((B, 0), np.int64)
        k = np.take_along_axis(k, again[..., None], 1)
        k_scale = k_scale if k_scale is None else np.take_along_axis(k_scale, again[..., None], 1)
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


def _rows(
    draw: np.random.Generator, rows: tuple[int, ...], D: int, problem: Problem
) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Queries or keys, and their scales if they have any."""
    if problem.qk_format == "bf16":
        return _wide(draw, rows, D, problem.data), None
    return _packed(draw, rows, D, problem.data)


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


def _wide(draw: np.random.Generator, rows: tuple[int, ...], D: int, data: str) -> NDArray[np.uint16]:
    """bfloat16 bits."""
    x = draw.standard_normal((*rows, D))
    if data == "zeros":
        x = x * 0
    if data in ("huge", "tiny"):
        x = np.ldexp(x, draw.integers(*((55, 65) if data == "huge" else (-55, -45)), (*rows, 1)))
    if data == "close_extreme":
        x = np.ldexp(x, draw.integers(-40, 40, (*rows[:-1], 1, 1)))
    if data == "special":
        spots = draw.integers(0, max(x.size, 1), x.size // 300)
        ends = (np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0**-50, 2.0**-51, 2.0**-130, 255 * 2.0**20)
        x.reshape(-1)[spots] = draw.choice(ends, spots.size)
    if data == "bits":
        return draw.integers(0, 1 << 16, x.shape, dtype=np.uint16)
    return bf16.encode(x.astype(np.float32))


def sequence(given: Operands, b: int) -> Operands:
    """The operands of one sequence."""
    return Operands(
        given.q[b],
        None if given.q_scale is None else given.q_scale[b],
        given.k[b],
        None if given.k_scale is None else given.k_scale[b],
        given.weights[b],
        given.kv_len[b],
    )


def _each(given: Operands) -> Iterator[Operands]:
    """The operands of one sequence after the other."""
    return (sequence(given, b) for b in range(given.q.shape[0]))


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


def draw_grad(problem: Problem) -> NDArray[np.float32]:
    """bfloat16 gradients of the logits, with special ones among those of ``special`` and ``codes``."""
    random = seeded(problem.seed, problem.name, "grad")
    grad = random.standard_normal((problem.B, problem.S, problem.T)).astype(np.float32)
    if problem.data in ("special", "codes"):
        spots = random.integers(0, max(grad.size, 1), grad.size // 40)
        grad.reshape(-1)[spots] = random.choice((np.nan, np.inf, 0.0, -0.0, 2.0**-60, 1e30), spots.size)
    return bf16.decode(bf16.encode(grad))


def _expected_gradients(problem: Problem) -> Arrays:
    found = [
        reference.indexer_logits_backward(grad, x.q, x.q_scale, x.k, x.k_scale, x.weights, x.kv_len)
        for grad, x in zip(draw_grad(problem), _each(operands(problem)), strict=True)
    ]
    return {name: np.stack(parts) for name, parts in zip(GRADIENTS, zip(*found, strict=True), strict=True)}


class Tensors(NamedTuple):
    """The operands where the device wants them."""

    q: torch.Tensor
    q_scale: torch.Tensor | None
    k: torch.Tensor
    k_scale: torch.Tensor | None
    weights: torch.Tensor
    kv_len: torch.Tensor


def tensors(given: Operands, home: str = "cpu") -> Tensors:
    """Operands as the public functions take them."""
    import torch

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        made = torch.from_numpy(np.ascontiguousarray(array)).to(home)
        return made.view(torch.bfloat16) if array.dtype == np.uint16 else made

    return Tensors(
        tensor(given.q),
        None if given.q_scale is None else tensor(given.q_scale),
        tensor(given.k),
        None if given.k_scale is None else tensor(given.k_scale),
        tensor(given.weights),
        tensor(given.kv_len),
    )


def _tensors(problem: Problem, device: str) -> Tensors:
    from ..support import home_of

    return tensors(operands(problem), home_of(device))


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


def _run_gradients(problem: Problem, device: str) -> Arrays:
    import torch

    from .backward import backward

    x = _tensors(problem, device)
    grad = torch.from_numpy(draw_grad(problem)).to(x.q.device, torch.bfloat16)
    found = backward(grad, *x, False, True, device)
    return {
        name: tensor.cpu().view(torch.uint16 if tensor.dtype == torch.bfloat16 else torch.float32).numpy()
        for name, tensor in zip(GRADIENTS, found, strict=True)
    }
