"""The lightning indexer: public functions, checks, torch registration."""

from __future__ import annotations

from typing import Literal, overload

import torch

from ..support import bytes_of, define, require_numerics, require_tensor
from .backward import prepared, register
from .plans import Operands, given, logits_plan, select_plan

Tensor = torch.Tensor
MODES = ("exact", "native")


@overload
def lightning_indexer(
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    topk: int,
    kv_len: Tensor | None = None,
    return_scores: Literal[False] = False,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> Tensor: ...
@overload
def lightning_indexer(
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    topk: int,
    kv_len: Tensor | None,
    return_scores: Literal[True],
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...
def lightning_indexer(
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    topk: int,
    kv_len: Tensor | None = None,
    return_scores: bool = False,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The ``topk`` compressed entries with the largest index scores, for every query (DeepSeek-V3.2, section 2.1).

    score[s, t] = sum over heads h of weights[s, h] * relu(q[s, h] . k[t]), rounded to bfloat16. No scores are written
    to memory: beyond the outputs, memory grows with S * topk alone.

    Args:
        q: packed FP4 [[B,] S, H, D/2], uint8 or ``float4_e2m1fn_x2``, even index in the low nibble; or bfloat16
            [[B,] S, H, D]. D is a multiple of 32, in bfloat16 at most 512.
        q_scale: E8M0 bytes [[B,] S, H, D/32], uint8 or ``float8_e8m0fnu``; None for bfloat16.
        k: packed FP4 [[B,] T, D/2], or bfloat16 [[B,] T, D], as ``q`` is; one key per entry, shared by all heads.
        k_scale: E8M0 bytes [[B,] T, D/32]; None for bfloat16.
        weights: float32 [[B,] S, H]; the caller folds D^-0.5 and H^-0.5 into them.
        topk: how many entries to choose, 1 to 4096.
        kv_len: int32 [[B,] S], how many entries from the first a query sees; below 0 it reads as 0, above T as T. None
            for all.
        return_scores: also return the chosen entries' scores.
        numerics: ``"exact"``, the contract of ``docs/numerics.md`` (C3 or C4, C7, C9), or ``"native"``: bfloat16
            products on the device's matrix unit, deterministic, within the bound stated there.
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        Indices int32 [[B,] S, topk], larger score first and of equal scores the lower index first, NaN above all; -1
        where fewer entries are visible. With ``return_scores`` also bfloat16 [[B,] S, topk], -Inf there.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    require_numerics("lightning_indexer", numerics, MODES)
    _require_tensors(q, q_scale, k, k_scale, weights, kv_len)
    index, scores = _select(
        bytes_of(q), bytes_of(q_scale), bytes_of(k), bytes_of(k_scale), weights, topk, kv_len, numerics, backend
    )
    return (index, scores) if return_scores else index


def indexer_logits(
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    kv_len: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    quantize: bool = False,
    numerics: str = "exact",
    backend: str | None = None,
) -> Tensor:
    """All index scores, for a selection of your own, or to train the indexer.

    Differentiable in ``weights`` and in bfloat16 ``q`` and ``k``, at most 512 heads; the gradients' sums are exact dots
    in a written order too (``docs/numerics.md``).

    Args:
        q, q_scale, k, k_scale, weights, kv_len, numerics, backend: as in :func:`lightning_indexer`.
        out_dtype: ``bfloat16`` (what :func:`lightning_indexer` compares) or ``float32``.
        quantize: take bfloat16 ``q`` and ``k`` to MXFP4 first: the logits of an FP4 indexer, to the bit. Their
            gradients pass straight through the rounding.

    Returns:
        [[B,] S, T] of ``out_dtype``; -Inf at entries that a query does not see.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`lightning_indexer`.
    """
    require_numerics("indexer_logits", numerics, MODES)
    _require_tensors(q, q_scale, k, k_scale, weights, kv_len)
    scales = bytes_of(q_scale), bytes_of(k_scale)
    return _logits(
        bytes_of(q), scales[0], bytes_of(k), scales[1], weights, kv_len, quantize, out_dtype, numerics, backend
    )


def _require_tensors(
    q: Tensor, q_scale: Tensor | None, k: Tensor, k_scale: Tensor | None, weights: Tensor, kv_len: Tensor | None
) -> None:
    for name, value in (("q", q), ("k", k), ("weights", weights)):
        require_tensor(name, value)
    for name, optional in (("q_scale", q_scale), ("k_scale", k_scale), ("kv_len", kv_len)):
        if optional is not None:
            require_tensor(name, optional)


def _select_impl(
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    topk: int,
    kv_len: Tensor | None,
    numerics: str,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    tensors = Operands(q, q_scale, k, k_scale, weights, kv_len)
    plan = select_plan(given(tensors), topk, numerics, backend)
    index, scores = _select_fake(q, q_scale, k, k_scale, weights, topk, kv_len, numerics, backend)
    if plan is None:
        return index.fill_(-1), scores.fill_(float("-inf"))
    operands = plan.stream.operands(*tensors)
    rows = index.numel() // topk
    if plan.merge is None:
        plan.select(*operands, index.view(rows, topk), scores.view(rows, topk))
    else:
        kept = index.new_empty((rows * plan.pieces, topk))
        keys = scores.new_empty((rows * plan.pieces, topk))
        plan.select(*operands, kept, keys)
        plan.merge(kept, keys, index.view(rows, topk), scores.view(rows, topk))
    return index, scores


def _select_fake(
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    topk: int,
    kv_len: Tensor | None,
    numerics: str,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:-2], topk)
    return q.new_empty(shape, dtype=torch.int32), q.new_empty(shape, dtype=torch.bfloat16)


def _logits_impl(
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    kv_len: Tensor | None,
    quantize: bool,
    out_dtype: torch.dtype,
    numerics: str,
    backend: str | None,
) -> Tensor:
    out = _logits_fake(q, q_scale, k, k_scale, weights, kv_len, quantize, out_dtype, numerics, backend)
    tensors = prepared(Operands(q, q_scale, k, k_scale, weights, kv_len), quantize, backend)
    plan = logits_plan(given(tensors), out_dtype, numerics, backend)
    if plan is not None:
        plan.run(*plan.stream.operands(*tensors), out.view(-1))
    return out


def _logits_fake(
    q: Tensor,
    q_scale: Tensor | None,
    k: Tensor,
    k_scale: Tensor | None,
    weights: Tensor,
    kv_len: Tensor | None,
    quantize: bool,
    out_dtype: torch.dtype,
    numerics: str,
    backend: str | None,
) -> Tensor:
    return q.new_empty((*q.shape[:-2], k.shape[-2]), dtype=out_dtype)


_select = define(
    "lightning_indexer(Tensor q, Tensor? q_scale, Tensor k, Tensor? k_scale, Tensor weights, int topk, "
    "Tensor? kv_len, str numerics, str? backend) -> (Tensor, Tensor)",
    _select_impl,
    _select_fake,
)
_logits = define(
    "indexer_logits(Tensor q, Tensor? q_scale, Tensor k, Tensor? k_scale, Tensor weights, Tensor? kv_len, "
    "bool quantize, ScalarType out_dtype, str numerics, str? backend) -> Tensor",
    _logits_impl,
    _logits_fake,
)
register()
