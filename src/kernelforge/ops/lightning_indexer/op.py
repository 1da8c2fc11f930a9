"""The lightning indexer: public functions, checks, torch registration."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, overload

import torch

from ...backends import Executable
from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, schedule
from ..support import Meta, bytes_of, choose_device, define, expect, meta, require_numerics, require_tensor

BLOCK = 32
LARGEST_TOPK = 4096
LARGEST_TENSOR = 2**31
"""Elements of a tensor stay below, as kernels index with int32."""

NEEDS = frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32})
KERNELS = "kernelforge.ops.lightning_indexer.kernel"
LOGIT_DTYPES = (torch.bfloat16, torch.float32)


class Problem(NamedTuple):
    """A checked call: B sequences of S queries over T entries, H heads of D."""

    B: int
    S: int
    T: int
    H: int
    D: int


@overload
def lightning_indexer(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    topk: int,
    kv_len: torch.Tensor | None = None,
    return_scores: Literal[False] = False,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor: ...
@overload
def lightning_indexer(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    topk: int,
    kv_len: torch.Tensor | None,
    return_scores: Literal[True],
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]: ...
def lightning_indexer(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    topk: int,
    kv_len: torch.Tensor | None = None,
    return_scores: bool = False,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The ``topk`` compressed entries with the largest index scores, for every query (DeepSeek-V3.2, section 2.1).

    score[s, t] = sum over heads h of weights[s, h] * relu(q[s, h] . k[t]), rounded to bfloat16. No scores are written
    to memory: beyond the outputs, memory grows with S * topk alone.

    Args:
        q: packed FP4 [[B,] S, H, D/2], uint8 or ``float4_e2m1fn_x2``, even index in the low nibble; D a multiple of 32.
        q_scale: E8M0 bytes [[B,] S, H, D/32], uint8 or ``float8_e8m0fnu``.
        k: packed FP4 [[B,] T, D/2]; one key per entry, shared by all heads.
        k_scale: E8M0 bytes [[B,] T, D/32].
        weights: float32 [[B,] S, H]; the caller folds D^-0.5 and H^-0.5 into them.
        topk: how many entries to choose, 1 to 4096.
        kv_len: int32 [[B,] S], how many entries from the first a query sees; below 0 it reads as 0, above T as T. None
            for all.
        return_scores: also return the chosen entries' scores.
        numerics: ``"exact"``, the contract of ``docs/numerics.md`` (C3, C7, C9).
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        Indices int32 [[B,] S, topk], larger score first and of equal scores the lower index first, NaN above all; -1
        where fewer entries are visible. With ``return_scores`` also bfloat16 [[B,] S, topk], -Inf there.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    require_numerics("lightning_indexer", numerics)
    _require_tensors(q, q_scale, k, k_scale, weights, kv_len)
    index, scores = _select(
        bytes_of(q), bytes_of(q_scale), bytes_of(k), bytes_of(k_scale), weights, topk, kv_len, backend
    )
    return (index, scores) if return_scores else index


def indexer_logits(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    kv_len: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor:
    """All index scores, for a selection of your own.

    Args:
        q, q_scale, k, k_scale, weights, kv_len, numerics, backend: as in :func:`lightning_indexer`.
        out_dtype: ``bfloat16`` (what :func:`lightning_indexer` compares) or ``float32``.

    Returns:
        [[B,] S, T] of ``out_dtype``; -Inf at entries that a query does not see.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`lightning_indexer`.
    """
    require_numerics("indexer_logits", numerics)
    _require_tensors(q, q_scale, k, k_scale, weights, kv_len)
    return _logits(bytes_of(q), bytes_of(q_scale), bytes_of(k), bytes_of(k_scale), weights, kv_len, out_dtype, backend)


def _require_tensors(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    kv_len: torch.Tensor | None,
) -> None:
    named = {"q": q, "q_scale": q_scale, "k": k, "k_scale": k_scale, "weights": weights}
    for name, value in named.items():
        require_tensor(name, value)
    if kv_len is not None:
        require_tensor("kv_len", kv_len)


def _check(q: Meta, q_scale: Meta, k: Meta, k_scale: Meta, weights: Meta, kv_len: Meta | None) -> Problem:
    device = q.device
    if len(q.shape) not in (3, 4):
        raise ValueError(f"q: given {q}, wanted uint8[S, H, D/2] or [B, S, H, D/2]")
    batch = q.shape[:-3]
    expect("q", q, (torch.uint8,), (*batch, "S", "H", "D/2"), device)
    S, H, width = q.shape[-3:]
    D = 2 * width
    if D == 0 or D % BLOCK:
        raise ValueError(f"q: given {q}, so D = {D}; D must be a positive multiple of {BLOCK}")
    if H == 0:
        raise ValueError(f"q: given {q}; at least one head is wanted")
    expect("q_scale", q_scale, (torch.uint8,), (*batch, S, H, D // BLOCK), device)
    expect("k", k, (torch.uint8,), (*batch, "T", width), device)
    T = k.shape[-2]
    expect("k_scale", k_scale, (torch.uint8,), (*batch, T, D // BLOCK), device)
    expect("weights", weights, (torch.float32,), (*batch, S, H), device)
    if kv_len is not None:
        expect("kv_len", kv_len, (torch.int32,), (*batch, S), device)
    for name, given in (("q", q), ("k", k)):
        if given.shape.numel() >= LARGEST_TENSOR:
            raise ValueError(f"{name}: given {given}, wanted fewer than 2^31 elements; split the batch")
    return Problem(batch.numel(), S, T, H, D)


def _compiled(kernel: str, device: str, tiles: dict[str, int], **parameters: object) -> Executable:
    return executable(KernelSpec.of(f"{KERNELS}:{kernel}", NEEDS, **parameters, **tiles), device)


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


class _Selection(NamedTuple):
    """How a checked call is run."""

    select: Executable
    merge: Executable | None
    pieces: int
    work: torch.Tensor
    starts: torch.Tensor
    everything: torch.Tensor


@functools.lru_cache(maxsize=512)
def _select_plan(
    q: Meta,
    q_scale: Meta,
    k: Meta,
    k_scale: Meta,
    weights: Meta,
    topk: int,
    kv_len: Meta | None,
    backend: str | None,
) -> _Selection | None:
    problem = _check(q, q_scale, k, k_scale, weights, kv_len)
    if not 1 <= topk <= LARGEST_TOPK:
        raise ValueError(f"topk: given {topk}, wanted 1 to {LARGEST_TOPK}")
    device = choose_device(backend, q.device)
    if problem.B * problem.S == 0 or problem.T == 0:
        return None
    tiles = dict(schedule("lightning_indexer", device, kernel="lightning_indexer", topk=topk, **problem._asdict()))
    least, most = tiles.pop("piece"), tiles.pop("most_blocks")
    blocks = problem.B * -(-problem.S // tiles["block_S"])
    pieces = max(1, min(-(-problem.T // least), most // blocks))
    piece = -(-problem.T // (pieces * tiles["block_T"])) * tiles["block_T"]
    pieces = -(-problem.T // piece)
    parameters = {"H": problem.H, "D": problem.D, "topk": topk}
    merge = None
    if pieces > 1:
        merging = schedule("lightning_indexer", device, kernel="merge_selections", topk=topk, **problem._asdict())
        merge = _compiled("merge_selections", device, dict(merging), topk=topk)
    return _Selection(
        _compiled("lightning_indexer", device, tiles, final=pieces == 1, **parameters),
        merge,
        pieces,
        work_table(problem, tiles["block_S"], pieces, piece, q.device),
        torch.arange(0, piece, tiles["block_T"], dtype=torch.int32, device=q.device),
        _everything(problem, q.device),
    )


def _everything(problem: Problem, device: torch.device) -> torch.Tensor:
    """The ``kv_len`` of queries that see all entries."""
    return torch.full((problem.B * problem.S,), problem.T, dtype=torch.int32, device=device)


def _operands(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    kv_len: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """The kernels' operands: leading axes in one."""
    matrices = tuple(x.view(-1, x.shape[-1]) for x in (q, q_scale, k, k_scale, weights))
    return (*matrices, kv_len.view(-1))


def _select_impl(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    topk: int,
    kv_len: torch.Tensor | None,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    plan = _select_plan(
        _known(q), _known(q_scale), _known(k), _known(k_scale), _known(weights), topk, meta(kv_len), backend
    )
    index, scores = _select_fake(q, q_scale, k, k_scale, weights, topk, kv_len, backend)
    if plan is None:
        return index.fill_(-1), scores.fill_(float("-inf"))
    operands = _operands(q, q_scale, k, k_scale, weights, plan.everything if kv_len is None else kv_len)
    rows = operands[4].shape[0]
    if plan.merge is None:
        plan.select(*operands, plan.work, plan.starts, index.view(rows, topk), scores.view(rows, topk))
    else:
        kept = index.new_empty((rows * plan.pieces, topk))
        keys = scores.new_empty((rows * plan.pieces, topk))
        plan.select(*operands, plan.work, plan.starts, kept, keys)
        plan.merge(kept, keys, index.view(rows, topk), scores.view(rows, topk))
    return index, scores


def _known(tensor: torch.Tensor) -> Meta:
    described = meta(tensor)
    assert described is not None
    return described


def _select_fake(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    topk: int,
    kv_len: torch.Tensor | None,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*q.shape[:-2], topk)
    return q.new_empty(shape, dtype=torch.int32), q.new_empty(shape, dtype=torch.bfloat16)


class _Logits(NamedTuple):
    """How a checked call is run."""

    run: Executable
    work: torch.Tensor
    starts: torch.Tensor
    everything: torch.Tensor


@functools.lru_cache(maxsize=512)
def _logits_plan(
    q: Meta,
    q_scale: Meta,
    k: Meta,
    k_scale: Meta,
    weights: Meta,
    kv_len: Meta | None,
    out_dtype: torch.dtype,
    backend: str | None,
) -> _Logits | None:
    problem = _check(q, q_scale, k, k_scale, weights, kv_len)
    if out_dtype not in LOGIT_DTYPES:
        raise TypeError(f"out_dtype: given {out_dtype}, wanted torch.bfloat16 or torch.float32")
    cells = problem.B * problem.S * problem.T
    if cells >= LARGEST_TENSOR:
        raise ValueError(f"q: given {q} and k {k}, so {cells} logits; fewer than 2^31 are wanted, split the queries")
    device = choose_device(backend, q.device)
    if cells == 0:
        return None
    tiles = dict(schedule("lightning_indexer", device, kernel="indexer_logits", topk=0, **problem._asdict()))
    name = str(out_dtype).removeprefix("torch.")
    return _Logits(
        _compiled("indexer_logits", device, tiles, H=problem.H, D=problem.D, out_dtype=name),
        work_table(problem, tiles["block_S"], 1, problem.T, q.device),
        torch.arange(0, problem.T, tiles["block_T"], dtype=torch.int32, device=q.device),
        _everything(problem, q.device),
    )


def _logits_impl(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    kv_len: torch.Tensor | None,
    out_dtype: torch.dtype,
    backend: str | None,
) -> torch.Tensor:
    plan = _logits_plan(
        _known(q), _known(q_scale), _known(k), _known(k_scale), _known(weights), meta(kv_len), out_dtype, backend
    )
    out = _logits_fake(q, q_scale, k, k_scale, weights, kv_len, out_dtype, backend)
    if plan is not None:
        operands = _operands(q, q_scale, k, k_scale, weights, plan.everything if kv_len is None else kv_len)
        plan.run(*operands, plan.work, plan.starts, out.view(-1))
    return out


def _logits_fake(
    q: torch.Tensor,
    q_scale: torch.Tensor,
    k: torch.Tensor,
    k_scale: torch.Tensor,
    weights: torch.Tensor,
    kv_len: torch.Tensor | None,
    out_dtype: torch.dtype,
    backend: str | None,
) -> torch.Tensor:
    return q.new_empty((*q.shape[:-2], k.shape[-2]), dtype=out_dtype)


_select = define(
    "lightning_indexer(Tensor q, Tensor q_scale, Tensor k, Tensor k_scale, Tensor weights, int topk, Tensor? kv_len, "
    "str? backend) -> (Tensor, Tensor)",
    _select_impl,
    _select_fake,
)
_logits = define(
    "indexer_logits(Tensor q, Tensor q_scale, Tensor k, Tensor k_scale, Tensor weights, Tensor? kv_len, "
    "ScalarType out_dtype, str? backend) -> Tensor",
    _logits_impl,
    _logits_fake,
)
