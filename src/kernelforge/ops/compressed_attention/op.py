"""Compressed attention: public functions, checks, torch registration."""

from __future__ import annotations

import functools
import threading

import torch

from ..support import define, meta, require_numerics, require_tensor
from . import gradient
from .plan import plan_call
from .problem import Arguments, ascending

MODES = ("exact", "native")


def csa_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    entries: torch.Tensor,
    indices: torch.Tensor,
    sink: torch.Tensor,
    positions: torch.Tensor,
    window: int = 128,
    scale: float | None = None,
    *,
    kv_start: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor:
    """Compressed sparse attention: every head of a query attends to shared entries, which are key and value at once.

    A query at position p sees the raw entries of positions p - window + 1 to p, its selected compressed entries, and a
    sink per head that has a weight but no value. A query that sees nothing (p < 0, or nothing selected and no raw
    entry in the window) returns 0. The same bits however the batch, the sequence or the cache is cut.

    Args:
        q: bfloat16 [B, S, H, D], normalized and rotated; D a multiple of 32, at most 512.
        kv: bfloat16 [B, T, D], raw entries of consecutive positions: [B, S, D] in a first prefill, the last ``window``
            ones in decode. The last row's position is the largest of ``positions`` in the batch row.
        entries: bfloat16 [B, N, D] compressed entries; with ``block_table`` pages of a cache, [P, page, D].
        indices: int32 [B, S, K]: selected entries of each query in any order, -1 for none (``kf.lightning_indexer``).
            Checked on the CPU; elsewhere the caller answers for their range.
        sink: float32 [H], logits; -Inf for none.
        positions: int32 or int64 [B, S], absolute; negative for padding.
        window: raw entries a query sees at most.
        scale: of q.k; None is D^-0.5.
        kv_start: int32 or int64 [B], the position of kv's first row where it is not the one that follows from
            ``positions``; rows of negative positions are never seen.
        block_table: int32 [B, n]: the pages of a batch row's entries, in order. Entry i lies in page i // page.
        cos, sin: float32 [B, S, R / 2] of the queries' positions: undo the rotation (interleaved pairs) on the last R
            channels of the output.
        numerics: ``"exact"``, the contract of ``docs/numerics.md`` (C1, C2, C4 to C6, C8), or ``"native"``: bfloat16
            products and probabilities on the device's matrix unit, deterministic, within the bound stated there; CPUs
            without bfloat16 dots (AVX512-BF16) run the exact path.
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        bfloat16 [B, S, H, D].

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    require_numerics("csa_attention", numerics, MODES)
    for name, value in (("q", q), ("kv", kv), ("entries", entries), ("indices", indices)):
        require_tensor(name, value)
    _require_common(sink, positions)
    return _csa(
        q,
        kv,
        entries,
        indices,
        sink,
        positions,
        window,
        _scale(q, scale),
        kv_start,
        block_table,
        cos,
        sin,
        numerics,
        backend,
    )


def hca_attention(
    q: torch.Tensor,
    kv: torch.Tensor,
    entries: torch.Tensor,
    sink: torch.Tensor,
    positions: torch.Tensor,
    window: int = 128,
    scale: float | None = None,
    *,
    ratio: int = 128,
    kv_start: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor:
    """Heavily compressed attention: as :func:`csa_attention`, but dense over the compressed entries.

    A query at position p sees all complete entries: those with an index below (p + 1) // ratio.

    Args:
        ratio: raw entries to a compressed one.
        q, kv, entries, sink, positions, window, scale, kv_start, block_table, cos, sin, numerics, backend: as in
            :func:`csa_attention`.

    Returns:
        bfloat16 [B, S, H, D].

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`csa_attention`.
    """
    require_numerics("hca_attention", numerics, MODES)
    for name, value in (("q", q), ("kv", kv), ("entries", entries)):
        require_tensor(name, value)
    _require_common(sink, positions)
    return _hca(
        q,
        kv,
        entries,
        sink,
        positions,
        window,
        _scale(q, scale),
        ratio,
        kv_start,
        block_table,
        cos,
        sin,
        numerics,
        backend,
    )


def _require_common(sink: torch.Tensor, positions: torch.Tensor) -> None:
    require_tensor("sink", sink)
    require_tensor("positions", positions)


def _scale(q: torch.Tensor, scale: float | None) -> float:
    return q.shape[-1] ** -0.5 if scale is None and q.dim() > 0 and q.shape[-1] > 0 else float(scale or 0.0)


def _flat(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    """The tensor as a matrix of at least one row: kernels take no address of an empty tensor."""
    return tensor.view(-1, columns) if tensor.numel() else tensor.new_zeros((1, columns))


@functools.lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Operands that nothing reads."""
    return torch.zeros(shape, dtype=dtype, device=device)


_kept = threading.local()
"""The last states' memory of each thread, on the CPU: fresh pages cost a decode step more than its arithmetic."""

_KEPT_BYTES = 1 << 26


def _states(parts: int, H: int, D: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``m``, ``l`` [parts, H] and ``o`` [parts * H, D], uninitialized."""
    rows = parts * H
    count = rows * (D + 2)
    memory: torch.Tensor | None = getattr(_kept, "memory", None) if device.type == "cpu" else None
    if memory is None or memory.shape[0] < count:
        memory = torch.empty(count, dtype=torch.float32, device=device)
        if device.type == "cpu" and memory.nbytes <= _KEPT_BYTES:
            _kept.memory = memory
    o, m, l = memory[: rows * D], memory[rows * D : rows * (D + 1)], memory[rows * (D + 1) : count]  # noqa: E741
    return m.view(parts, H), l.view(parts, H), o.view(rows, D)


def _run(
    q: torch.Tensor,
    kv: torch.Tensor,
    entries: torch.Tensor,
    indices: torch.Tensor | None,
    sink: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    ratio: int,
    kv_start: torch.Tensor | None,
    block_table: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    numerics: str,
    backend: str | None,
) -> torch.Tensor:
    tensors = (q, kv, entries, indices, sink, positions, kv_start, block_table, cos, sin)
    given = Arguments(*map(meta, tensors))  # type: ignore[arg-type]
    plan = plan_call(given, window, scale, ratio, numerics, backend, torch.get_num_threads())
    problem = plan.problem
    out = torch.empty_like(q)
    Q = problem.B * problem.S
    if Q == 0:
        return out
    here = q.device
    if kv_start is None:
        latest = positions.view(-1) if problem.S == 1 else positions.amax(-1)
        kv_start = latest + (1 - problem.T)
    at, first = positions.to(torch.int32).view(-1), kv_start.to(torch.int32)
    selected = _zeros((Q, 1), torch.int32, here) if indices is None else ascending(indices, problem.N)
    table = _zeros((1,), torch.int32, here) if block_table is None or not block_table.numel() else block_table.view(-1)
    if problem.rope and cos is not None and sin is not None:
        rotation = (cos.view(Q, -1), sin.view(Q, -1))
    else:
        rotation = (_zeros((Q, 1), torch.float32, here),) * 2
    places = (at, first, table, plan.sizes, plan.chunk_slots)
    operands = (q.view(-1, problem.D), _flat(kv, problem.D), _flat(entries, problem.D), selected)
    flat_out = out.view(-1, problem.D)
    if plan.fused is not None:
        plan.fused(*operands, sink, *places, *rotation, flat_out)
        return out
    assert plan.parts is not None
    assert plan.merge is not None
    parts = Q * (plan.window_slots + plan.chunk_slots.shape[0])
    part_m, part_l, part_o = _states(parts, problem.H, problem.D, here)
    plan.parts(*operands, *places, part_m, part_l, part_o)
    plan.merge(part_m, part_l, part_o, sink, plan.chunk_slots, *rotation, flat_out)
    return out


def _csa_impl(
    q: torch.Tensor,
    kv: torch.Tensor,
    entries: torch.Tensor,
    indices: torch.Tensor,
    sink: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    kv_start: torch.Tensor | None,
    block_table: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    numerics: str,
    backend: str | None,
) -> torch.Tensor:
    return _run(
        q, kv, entries, indices, sink, positions, window, scale, 1, kv_start, block_table, cos, sin, numerics, backend
    )


def _hca_impl(
    q: torch.Tensor,
    kv: torch.Tensor,
    entries: torch.Tensor,
    sink: torch.Tensor,
    positions: torch.Tensor,
    window: int,
    scale: float,
    ratio: int,
    kv_start: torch.Tensor | None,
    block_table: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    numerics: str,
    backend: str | None,
) -> torch.Tensor:
    return _run(
        q, kv, entries, None, sink, positions, window, scale, ratio, kv_start, block_table, cos, sin, numerics, backend
    )


def _fake(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(q)


_csa = define(
    "csa_attention(Tensor q, Tensor kv, Tensor entries, Tensor indices, Tensor sink, Tensor positions, int window, "
    "float scale, Tensor? kv_start, Tensor? block_table, Tensor? cos, Tensor? sin, str numerics, str? backend) "
    "-> Tensor",
    _csa_impl,
    _fake,
)
_hca = define(
    "hca_attention(Tensor q, Tensor kv, Tensor entries, Tensor sink, Tensor positions, int window, float scale, "
    "int ratio, Tensor? kv_start, Tensor? block_table, Tensor? cos, Tensor? sin, str numerics, str? backend) -> Tensor",
    _hca_impl,
    _fake,
)


gradient.register()
