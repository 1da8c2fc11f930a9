"""How a checked call of the indexer is run: kernels, schedules, and which block takes what."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ...backends import Executable
from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, schedule
from ..support import Meta, choose_device, expect, meta

BLOCK = 32
LARGEST_TOPK = 4096
LARGEST_BF16_DEPTH = 512
"""Longest bfloat16 rows: their dots have one exponent a row (contract C4)."""

LARGEST_TENSOR = 2**31
"""Elements of a tensor stay below, as kernels index with int32."""

NEEDS = frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32})
KERNELS = "kernelforge.ops.lightning_indexer.kernel"
BACKWARD_KERNELS = f"{KERNELS}_backward"
LOGIT_DTYPES = (torch.bfloat16, torch.float32)


class Operands(NamedTuple):
    """The operands of a call."""

    q: torch.Tensor
    q_scale: torch.Tensor | None
    k: torch.Tensor
    k_scale: torch.Tensor | None
    weights: torch.Tensor
    kv_len: torch.Tensor | None


class Given(NamedTuple):
    """What is checked of them."""

    q: Meta | None
    q_scale: Meta | None
    k: Meta | None
    k_scale: Meta | None
    weights: Meta | None
    kv_len: Meta | None


def given(operands: Operands) -> Given:
    """The description of operands; hashable, for plans that are made once."""
    return Given(*map(meta, operands))


class Problem(NamedTuple):
    """A checked call: B sequences of S queries over T entries, H heads of D."""

    B: int
    S: int
    T: int
    H: int
    D: int
    qk_format: str


def check(known: Given) -> Problem:
    """The problem that operands make.

    Raises:
        TypeError, ValueError: an operand is wrong; the message names it.
    """
    q, q_scale, k, k_scale, weights, kv_len = known
    if q is None or len(q.shape) not in (3, 4):
        raise ValueError(f"q: given {q}, wanted uint8[S, H, D/2] or bfloat16[S, H, D], or these with a leading B")
    device, batch, wide = q.device, q.shape[:-3], q.dtype == torch.bfloat16
    expect("q", q, (torch.uint8, torch.bfloat16), (*batch, "S", "H", "D" if wide else "D/2"), device)
    S, H, width = q.shape[-3:]
    D = width if wide else 2 * width
    if D == 0 or D % BLOCK:
        raise ValueError(f"q: given {q}, so D = {D}; D must be a positive multiple of {BLOCK}")
    if wide and D > LARGEST_BF16_DEPTH:
        raise ValueError(f"q: given {q}, so D = {D}; D is at most {LARGEST_BF16_DEPTH} in bfloat16")
    if H == 0:
        raise ValueError(f"q: given {q}; at least one head is wanted")
    k = expect("k", k, (q.dtype,), (*batch, "T", width), device)
    T = k.shape[-2]
    for name, scale, rows in (("q_scale", q_scale, (S, H)), ("k_scale", k_scale, (T,))):
        if not wide:
            expect(name, scale, (torch.uint8,), (*batch, *rows, D // BLOCK), device)
        elif scale is not None:
            raise ValueError(f"{name}: given {scale}, wanted None, as q and k are bfloat16")
    expect("weights", weights, (torch.float32,), (*batch, S, H), device)
    if kv_len is not None:
        expect("kv_len", kv_len, (torch.int32,), (*batch, S), device)
    for name, tensor in (("q", q), ("k", k)):
        if tensor.shape.numel() >= LARGEST_TENSOR:
            raise ValueError(f"{name}: given {tensor}, wanted fewer than 2^31 elements; split the batch")
    return Problem(batch.numel(), S, T, H, D, "bf16" if wide else "e2m1")


def home(known: Given, backend: str | None) -> tuple[str, torch.device]:
    """The kernelforge device that runs a checked call, and where its tensors lie."""
    assert known.q is not None
    return choose_device(backend, known.q.device), known.q.device


def tuned(kernel: str, device: str, problem: Problem, topk: int = 0) -> dict[str, int]:
    """The kernel's schedule."""
    return dict(schedule("lightning_indexer", device, kernel=kernel, topk=topk, **problem._asdict()))


def compiled(builder: str, device: str, tiles: dict[str, int], **parameters: object) -> Executable:
    """A kernel of this op, ready to launch."""
    return executable(KernelSpec.of(builder, NEEDS, **parameters, **tiles), device)


def work_table(problem: Problem, block_S: int, pieces: int, piece: int, device: torch.device) -> torch.Tensor:
    """Rows of ``work``, see ``kernel.py``: blocks of queries of one sequence, times pieces of its entries."""
    B, S, T = problem[:3]
    first = torch.arange(0, S, block_S)
    sequence = torch.arange(B)[:, None, None]
    query = (sequence * S + first[:, None]).expand(B, len(first), pieces)
    last = (sequence * S + (first + block_S).clamp(max=S)[:, None]).expand_as(query)
    number = torch.arange(pieces)
    columns = (
        query,
        last,
        (sequence * T).expand_as(query),
        (number * piece).expand_as(query),
        ((number + 1) * piece).clamp(max=T).expand_as(query),
        query * pieces + number,
        torch.full_like(query, pieces),
    )
    return torch.stack(columns, -1).view(-1, len(columns)).to(torch.int32).to(device)


class Stream(NamedTuple):
    """What scoring kernels take beside the operands.

    Attributes:
        work, starts: see ``kernel.py``.
        everything: the ``kv_len`` of queries that see all entries.
        no_scale: the scales of bfloat16 operands.
    """

    work: torch.Tensor
    starts: torch.Tensor
    everything: torch.Tensor
    no_scale: torch.Tensor

    @classmethod
    def of(cls, problem: Problem, tiles: dict[str, int], pieces: int, piece: int, device: torch.device) -> Stream:
        return cls(
            work_table(problem, tiles["block_S"], pieces, piece, device),
            torch.arange(0, piece, tiles["block_T"], dtype=torch.int32, device=device),
            torch.full((problem.B * problem.S,), problem.T, dtype=torch.int32, device=device),
            torch.zeros((1, 1), dtype=torch.uint8, device=device),
        )

    def operands(
        self,
        q: torch.Tensor,
        q_scale: torch.Tensor | None,
        k: torch.Tensor,
        k_scale: torch.Tensor | None,
        weights: torch.Tensor,
        kv_len: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        """The kernels' first arguments: leading axes in one."""
        scales = (self.no_scale if scale is None else scale.view(-1, scale.shape[-1]) for scale in (q_scale, k_scale))
        rows = (x.view(-1, x.shape[-1]) for x in (q, k, weights))
        q, k, weights = rows
        q_scale, k_scale = scales
        seen = self.everything if kv_len is None else kv_len.view(-1)
        return q, q_scale, k, k_scale, weights, seen, self.work, self.starts


class Selection(NamedTuple):
    """How :func:`kernelforge.lightning_indexer` is run; ``merge`` where the entries are cut into pieces."""

    select: Executable
    merge: Executable | None
    pieces: int
    stream: Stream


@functools.lru_cache(maxsize=512)
def select_plan(known: Given, topk: int, numerics: str, backend: str | None) -> Selection | None:
    """None where there is nothing to choose from."""
    problem = check(known)
    if not 1 <= topk <= LARGEST_TOPK:
        raise ValueError(f"topk: given {topk}, wanted 1 to {LARGEST_TOPK}")
    device, where = home(known, backend)
    if problem.B * problem.S == 0 or problem.T == 0:
        return None
    tiles = tuned("lightning_indexer", device, problem, topk)
    least, most = tiles.pop("piece"), tiles.pop("most_blocks")
    blocks = problem.B * -(-problem.S // tiles["block_S"])
    pieces = max(1, min(-(-problem.T // least), most // blocks))
    piece = -(-problem.T // (pieces * tiles["block_T"])) * tiles["block_T"]
    pieces = -(-problem.T // piece)
    native = numerics == "native"
    parameters = {"H": problem.H, "D": problem.D, "qk_format": problem.qk_format, "topk": topk, "native": native}
    merge = None
    if pieces > 1:
        merge = compiled(
            f"{KERNELS}:merge_selections", device, tuned("merge_selections", device, problem, topk), topk=topk
        )
    return Selection(
        compiled(f"{KERNELS}:lightning_indexer", device, tiles, final=pieces == 1, **parameters),
        merge,
        pieces,
        Stream.of(problem, tiles, pieces, piece, where),
    )


class Logits(NamedTuple):
    """How :func:`kernelforge.indexer_logits` is run."""

    run: Executable
    stream: Stream


@functools.lru_cache(maxsize=512)
def logits_plan(known: Given, out_dtype: torch.dtype, numerics: str, backend: str | None) -> Logits | None:
    """None where there are no logits."""
    problem = check(known)
    if out_dtype not in LOGIT_DTYPES:
        raise TypeError(f"out_dtype: given {out_dtype}, wanted torch.bfloat16 or torch.float32")
    cells = problem.B * problem.S * problem.T
    if cells >= LARGEST_TENSOR:
        raise ValueError(
            f"q: given {known.q} and k {known.k}, so {cells} logits; fewer than 2^31 are wanted, split the queries"
        )
    device, where = home(known, backend)
    if cells == 0:
        return None
    tiles = tuned("indexer_logits", device, problem)
    native = numerics == "native"
    parameters = {"H": problem.H, "D": problem.D, "qk_format": problem.qk_format, "native": native}
    out = str(out_dtype).removeprefix("torch.")
    return Logits(
        compiled(f"{KERNELS}:indexer_logits", device, tiles, out_dtype=out, **parameters),
        Stream.of(problem, tiles, 1, problem.T, where),
    )
