"""Compressed attention backward: torch registration and autograd."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from ...backends import Executable
from ...numerics.attention import CHUNK, window_slots
from ...runtime import KernelSpec, executable, schedule
from ..support import LIBRARY, choose_device, define, expect, meta
from .heads import group_rows, groups_of
from .plan import NEEDS
from .problem import Arguments, Problem, ascending, bits_of, check, factor_bits

Tensor = torch.Tensor
Grads = tuple[Tensor, Tensor, Tensor, Tensor]

WORKSPACE = 128 << 20
"""Bytes of scores and windows at a time; a query of 64 heads that sees 768 entries takes 0.7 MB."""

_MODULES = {
    "cut_matrix": "products",
    "rotate_gradient": "products",
    "attention_products": "products",
    "attention_windows": "windows",
    "query_gradient": "gradients",
    "entry_gradient": "gradients",
    "sink_gradient": "gradients",
}


def kernel_spec(name: str, device: str, D: int, **given: Any) -> KernelSpec:
    """A kernel of the backward pass with its schedule; ``D`` is its width, or 0 where it has none."""
    tiles = dict(schedule("compressed_attention", device, kernel=name))
    if "block_D" in tiles:
        tiles["block_D"] = math.gcd(tiles["block_D"], D)
    if D:
        given["D"] = D
    return KernelSpec.of(f"{__package__}.kernels.{_MODULES[name]}:{name}", NEEDS, **given, **tiles)


@functools.lru_cache(maxsize=256)
def _kernel(name: str, device: str, D: int, **given: Any) -> Executable:
    return executable(kernel_spec(name, device, D, **given), device)


def visible_rows(
    problem: Problem, positions: Tensor, kv_start: Tensor, indices: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows of ``[kv, entries]`` (the batch rows of kv, then those of entries) that queries see, by chunk.

    Args:
        problem: the call.
        positions: int64 [B, S] of some queries.
        kv_start: int64 [B].
        indices: int32 [B, S, K] ascending, -1 last; None where all complete entries are seen.

    Returns:
        int32 [B * S * chunks, 128], -1 for none; int32 [B * S * chunks], 1 where a chunk has any.
    """
    B, T, N = problem.B, problem.T, problem.N
    here = positions.device
    batch = torch.arange(B, device=here)[:, None, None]
    at = positions[..., None]
    start = kv_start[:, None, None]
    first = torch.maximum(at - problem.window + 1, start).clamp(min=0)
    last = torch.minimum(at + 1, start + T)
    place = first // CHUNK * CHUNK + torch.arange(window_slots(problem.window) * CHUNK, device=here)
    raw = torch.where((place >= first) & (place < last), batch * T + place - start, -1)
    chunks = -(-(problem.topk or N) // CHUNK)
    if indices is None:
        chosen = torch.arange(chunks * CHUNK, device=here)
        seen = chosen < ((at + 1) // problem.ratio).clamp(max=N)
    else:
        chosen = torch.nn.functional.pad(indices.long(), (0, chunks * CHUNK - indices.shape[-1]), value=-1)
        seen = (chosen >= 0) & (chosen < N)
    compressed = torch.where(seen, B * T + batch * N + chosen, -1)
    rows = torch.cat([raw, compressed], -1)
    rows = torch.where(at >= 0, rows, -1).to(torch.int32).view(-1, CHUNK)
    return rows, (rows >= 0).any(-1).to(torch.int32)


def _rounded(x: Tensor) -> Tensor:
    """float32 as the contract's bfloat16 (C8)."""
    result = x.to(torch.bfloat16)
    result = torch.where(x.isnan(), result.new_full((), math.nan), result)
    return torch.where(result == 0, result.new_zeros(()), result)


def _cut(
    x: Tensor, device: str, slices: Tensor | None = None, exponents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Slices int8 [M, 2 D] and exponents int32 [M] of a bfloat16 matrix."""
    M, D = x.shape
    slices = x.new_empty((M, 2 * D), dtype=torch.int8) if slices is None else slices
    exponents = x.new_empty(M, dtype=torch.int32) if exponents is None else exponents
    if M:
        _kernel("cut_matrix", device, D)(x, slices, exponents)
    return slices, exponents


def _impl(
    grad: Tensor,
    q: Tensor,
    kv: Tensor,
    entries: Tensor,
    indices: Tensor | None,
    sink: Tensor,
    positions: Tensor,
    window: int,
    scale: float,
    ratio: int,
    kv_start: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    backend: str | None,
) -> Grads:
    tensors = (q, kv, entries, indices, sink, positions, kv_start, None, cos, sin)
    given = Arguments(*map(meta, tensors))  # type: ignore[arg-type]
    problem = check(given, window, scale, ratio)
    expect("grad", meta(grad), (torch.bfloat16,), tuple(q.shape), q.device)
    device = choose_device(backend, q.device)
    B, S, H, D = q.shape
    T, N = problem.T, problem.N
    grads = torch.empty_like(q), torch.zeros_like(kv), torch.zeros_like(entries), torch.zeros_like(sink)
    if B * S == 0:
        return grads
    positions = positions.long()
    start = positions.amax(-1) + (1 - T) if kv_start is None else kv_start.long()
    selected = None if indices is None else ascending(indices, N).view(B, S, -1)
    # At least one row: kernels take no address of an empty tensor.
    shared = q.new_empty((max(B * (T + N), 1), 2 * D), dtype=torch.int8)
    shared_exponents = q.new_empty(len(shared), dtype=torch.int32)
    _cut(kv.view(-1, D), device, shared[: B * T], shared_exponents[: B * T])
    _cut(entries.view(-1, D), device, shared[B * T :], shared_exponents[B * T :])
    totals = q.new_zeros((len(shared), D), dtype=torch.float32)
    groups = groups_of(H)
    P = group_rows(H) * groups
    sinks = q.new_empty((B, S, P), dtype=torch.float32)
    slots = window_slots(window) + -(-(problem.topk or N) // CHUNK)
    step = max(1, WORKSPACE // (14 * B * slots * CHUNK * P))
    batch = torch.zeros(B, dtype=torch.int32, device=q.device)
    for first in range(0, S, step):
        part = slice(first, min(first + step, S))
        rows, seen = visible_rows(problem, positions[:, part], start, None if selected is None else selected[:, part])
        part_q, part_grad = (x[:, part].contiguous().view(-1, D) for x in (q, grad))
        if cos is not None and sin is not None:
            turned = torch.empty_like(part_grad)
            angles = (x[:, part].contiguous().view(-1, problem.rope // 2) for x in (cos, sin))
            _kernel("rotate_gradient", device, D, H=H, rope=problem.rope)(part_grad, *angles, turned)
            part_grad = turned
        q_slices, q_exponents = _cut(part_q, device)
        grad_slices, grad_exponents = _cut(part_grad, device)
        chunks = len(seen)
        scores = q.new_empty((chunks * P, CHUNK), dtype=torch.float32)
        rises = torch.empty_like(scores)
        _kernel("attention_products", device, D, H=H, factor_bits=factor_bits(scale))(
            q_slices, q_exponents, grad_slices, grad_exponents, shared, shared_exponents, rows, seen, scores, rises
        )
        of_query = q.new_empty((chunks * P, 2 * CHUNK), dtype=torch.int8)
        query_units = q.new_empty(chunks * P, dtype=torch.int32)
        of_entries = q.new_empty((chunks * CHUNK, 4 * P), dtype=torch.int8)
        entry_units = q.new_empty((chunks * CHUNK, 2 * groups), dtype=torch.int32)
        part_sinks = q.new_empty((len(part_q) // H, P), dtype=torch.float32)
        _kernel("attention_windows", device, 0, H=H, scale_bits=bits_of(scale))(
            scores, rises, q_exponents, grad_exponents, shared_exponents, rows, seen, sink,
            of_query, query_units, of_entries, entry_units, part_sinks,
        )  # fmt: skip
        sinks[:, part] = part_sinks.view(B, -1, P)
        part_dq = torch.empty_like(part_q)
        _kernel("query_gradient", device, D, H=H)(of_query, query_units, shared, rows, seen, part_dq)
        grads[0][:, part] = part_dq.view(B, -1, H, D)
        _kernel("entry_gradient", device, D, H=H)(
            of_entries, entry_units, grad_slices, q_slices, rows, seen, batch, totals
        )
    _kernel("sink_gradient", device, 0, H=H)(sinks.view(-1, P), grads[3])
    rounded = _rounded(totals)
    return (
        grads[0],
        rounded[: B * T].view_as(kv).clone(),
        rounded[B * T : B * (T + N)].view_as(entries).clone(),
        grads[3],
    )


def _fake(grad: Tensor, q: Tensor, kv: Tensor, entries: Tensor, indices: Tensor | None, sink: Tensor, *_: Any) -> Grads:
    return torch.empty_like(q), torch.empty_like(kv), torch.empty_like(entries), torch.empty_like(sink)


backward = define(
    "compressed_attention_backward(Tensor grad, Tensor q, Tensor kv, Tensor entries, Tensor? indices, Tensor sink, "
    "Tensor positions, int window, float scale, int ratio, Tensor? kv_start, Tensor? cos, Tensor? sin, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _impl,
    _fake,
)


def _save(ctx: Any, tensors: tuple[Tensor | None, ...], numbers: tuple[Any, ...], block_table: Tensor | None) -> None:
    if block_table is not None:
        raise NotImplementedError(
            "block_table: a paged cache has no gradient; pass entries [B, N, D] side by side, "
            "or call under torch.no_grad()"
        )
    ctx.save_for_backward(*tensors)
    ctx.numbers = numbers


def _save_csa(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, window, scale, kv_start, block_table, cos, sin, _, backend = inputs
    _save(ctx, (*tensors, kv_start, cos, sin), (window, scale, 1, backend), block_table)


def _save_hca(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, kv, entries, sink, positions, window, scale, ratio, kv_start, block_table, cos, sin, _, backend = inputs
    saved = (q, kv, entries, None, sink, positions, kv_start, cos, sin)
    _save(ctx, saved, (window, scale, ratio, backend), block_table)


def _grads(ctx: Any, grad: Tensor) -> Grads:
    *tensors, kv_start, cos, sin = ctx.saved_tensors
    window, scale, ratio, backend = ctx.numbers
    found: Grads = backward(grad.contiguous(), *tensors, window, scale, ratio, kv_start, cos, sin, backend)
    return found


def _csa_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, kv, entries, sink = _grads(ctx, grad)
    return (q, kv, entries, None, sink, *[None] * 9)


def _hca_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_grads(ctx, grad), *[None] * 10)


def register() -> None:
    """Make both attentions differentiable in q, kv, entries and sink."""
    for name, gradient, save in (("csa", _csa_gradient, _save_csa), ("hca", _hca_gradient, _save_hca)):
        torch.library.register_autograd(f"kernelforge::{name}_attention", gradient, setup_context=save, lib=LIBRARY)
