"""Compression of key-value streams: public functions, checks, torch registration."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..support import Meta, call, define, expect, meta, require_numerics, require_tensor
from .backward import register
from .plans import compiled, rows
from .state import CompressState

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.bfloat16)
LARGEST_RATIO = 1024
EPS_RANGE = (2.0**-22, 1.0)
INPUTS = ("kv", "gate", "position_bias", "norm_weight", "cos", "sin")


def csa_compress(
    kv: Tensor,
    gate: Tensor,
    position_bias: Tensor,
    norm_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    ratio: int = 4,
    eps: float = 1e-6,
    state: CompressState | None = None,
    *,
    lengths: Tensor | None = None,
    count: int | None = None,
    numerics: str = "exact",
    backend: str | None = None,
) -> tuple[Tensor, CompressState]:
    """Compress every ``ratio`` tokens into one entry, over overlapping windows (DeepSeek-V4's CSA, series a and b).

    Entry w is a softmax-weighted mean, channel by channel, of 2 * ratio slots: series a of window w - 1 and series b of
    window w, with logits gate + position_bias; then RMS normalization times ``norm_weight``; then interleaved RoPE on
    the trailing channels at position w * ratio. Window 0 has no window before it: those slots have weight 0.

    However a sequence is cut into calls, its entries have the same bits.

    Args:
        kv: projected tokens [B, S, 2 * D], float32 or bfloat16, contiguous; series a in the first D channels, b in the
            last. D is a multiple of 32.
        gate: like ``kv``.
        position_bias: float32 [ratio, 2 * D].
        norm_weight: float32 [D].
        cos, sin: float32 [positions, rope / 2]; row p is position p. The last ``rope`` channels of an entry are turned:
            channels 2i and 2i + 1 of them by angle i.
        ratio: tokens per window.
        eps: of the normalization, 2^-22 to 1.
        state: from the call before, updated in place; None at the start of the sequences.
        lengths: int32 [B], how many of the S tokens are there, sequence by sequence; None for all of them.
        count: entries to return per sequence, from 0 to ceil(S / ratio); None for as many as the sequence completes
            that completes most, which reads the state's positions on the host. A fixed count is for CUDA graphs: the
            length of ``cos`` and the ``lengths`` are then not checked.
        numerics: ``"exact"``, the contract of ``docs/numerics.md``.
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        Entries [B, count, D] in the type of ``kv``, for each sequence those completed by this call and then zeros, and
        the state. Entry i of sequence b is its window ``(position before the call) // ratio + i``. Without a state and
        lengths, count is S // ratio. Differentiable in kv, gate, position_bias and norm_weight while ``state`` is None.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    tensors = (kv, gate, position_bias, norm_weight, cos, sin)
    return _compress("csa_compress", True, tensors, ratio, eps, state, lengths, count, numerics, backend)


def hca_compress(
    kv: Tensor,
    gate: Tensor,
    position_bias: Tensor,
    norm_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    ratio: int = 128,
    eps: float = 1e-6,
    state: CompressState | None = None,
    *,
    lengths: Tensor | None = None,
    count: int | None = None,
    numerics: str = "exact",
    backend: str | None = None,
) -> tuple[Tensor, CompressState]:
    """Compress every ``ratio`` tokens into one entry, window by window (DeepSeek-V4's HCA).

    :func:`csa_compress` without overlap: entry w is made of the ``ratio`` tokens of window w alone.

    Args:
        kv, gate: projected tokens [B, S, D].
        position_bias: float32 [ratio, D].
        norm_weight, cos, sin, ratio, eps, state, lengths, count, numerics, backend: as in :func:`csa_compress`.

    Returns, Raises: as in :func:`csa_compress`.
    """
    tensors = (kv, gate, position_bias, norm_weight, cos, sin)
    return _compress("hca_compress", False, tensors, ratio, eps, state, lengths, count, numerics, backend)


def _compress(
    op: str,
    overlap: bool,
    tensors: tuple[Tensor, ...],
    ratio: int,
    eps: float,
    state: CompressState | None,
    lengths: Tensor | None,
    count: int | None,
    numerics: str,
    backend: str | None,
) -> tuple[Tensor, CompressState]:
    require_numerics(op, numerics)
    for name, tensor in zip(INPUTS, tensors, strict=True):
        require_tensor(name, tensor)
    _check_inputs(overlap, tuple(map(meta, tensors)), ratio, eps)
    kv, gate, *_, cos, _ = tensors
    batch, S, width = kv.shape
    before = state
    if state is None:
        D = width // 2 if overlap else width
        state = CompressState.start(batch, ratio, D, overlap, kv.dtype, kv.device)
    else:
        _check_state(meta(kv), tuple(meta(tensor) for tensor in state), ratio, overlap)
        _refuse_gradients(op, *tensors)
    if lengths is not None:
        require_tensor("lengths", lengths)
        expect("lengths", meta(lengths), (torch.int32,), (batch,), kv.device)
    if count is None:
        count = _count(None if before is None else before.position, lengths, S, ratio, cos.shape[0])
    elif not 0 <= count <= -(-S // ratio):
        raise ValueError(f"count: given {count}, wanted 0 to {-(-S // ratio)}, what {S} tokens can complete")
    whole = before is None and lengths is None and not overlap and S % ratio == 0
    if lengths is None:
        lengths = torch.full((batch,), S, dtype=torch.int32, device=kv.device)
    given = (*tensors, *state, lengths)
    entries: Tensor = call(_compress_op, _compress_impl, given, ratio, count, eps, backend)
    if whole:  # windows all finished: of them a state keeps nothing but their number
        state.position.add_(lengths)
        return entries, state
    with torch.no_grad():
        _state_op(kv, gate, *state, lengths, backend)
    return entries, state


def _refuse_gradients(op: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"state: given, while gradients are asked for; {op} trains on whole sequences: pass state=None, or call it "
            "under torch.no_grad()"
        )


def _count(position: Tensor | None, lengths: Tensor | None, S: int, ratio: int, positions: int) -> int:
    """Entries of the sequence that completes most; checks the lengths and the reach of the rotation table."""
    if position is None and lengths is None:
        count = S // ratio
        last = (count - 1) * ratio
    else:
        given = [S] if lengths is None else lengths.tolist()
        if any(not 0 <= length <= S for length in given):
            raise ValueError(f"lengths: given {given}, wanted 0 to {S}, the tokens there are")
        before = [0] * len(given) if position is None else position.tolist()
        given = given * len(before) if lengths is None else given
        after = [start + length for start, length in zip(before, given, strict=True)]
        found = [end // ratio - start // ratio for start, end in zip(before, after, strict=True)]
        last = max((end // ratio - 1 for n, end in zip(found, after, strict=True) if n), default=-1) * ratio
        count = max(found, default=0)
    if last >= positions:
        raise ValueError(f"cos: given {positions} positions, wanted at least {last + 1}; an entry lies at {last}")
    return count


@functools.lru_cache(maxsize=4096)
def _check_inputs(overlap: bool, given: tuple[Meta, ...], ratio: int, eps: float) -> None:
    kv, gate, position_bias, norm_weight, cos, sin = given
    width = "2 * D" if overlap else "D"
    if not 1 <= ratio <= LARGEST_RATIO:
        raise ValueError(f"ratio: given {ratio}, wanted 1 to {LARGEST_RATIO}")
    if not EPS_RANGE[0] <= eps <= EPS_RANGE[1]:
        raise ValueError(f"eps: given {eps}, wanted 2^-22 to 1")
    expect("kv", kv, DTYPES, ("B", "S", width), kv.device)
    series = 2 if overlap else 1
    D = kv.shape[2] // series
    if D == 0 or kv.shape[2] % (32 * series):
        raise ValueError(f"kv: given {kv}, wanted [B, S, {width}] with D a positive multiple of 32")
    if kv.shape.numel() >= 2**31:
        raise ValueError(f"kv: given {kv}, wanted fewer than 2^31 elements; feed it in pieces through the state")
    expect("gate", gate, (kv.dtype,), kv.shape, kv.device)
    expect("position_bias", position_bias, (torch.float32,), (ratio, kv.shape[2]), kv.device)
    expect("norm_weight", norm_weight, (torch.float32,), (D,), kv.device)
    expect("cos", cos, (torch.float32,), ("positions", "rope / 2"), kv.device)
    if not 1 <= cos.shape[1] <= D // 2 or not cos.shape[0]:
        raise ValueError(f"cos: given {cos}, wanted [positions, rope / 2] with 1 to {D // 2} angles")
    expect("sin", sin, (torch.float32,), cos.shape, kv.device)


@functools.lru_cache(maxsize=4096)
def _check_state(kv: Meta, state: tuple[Meta, ...], ratio: int, overlap: bool) -> None:
    batch, _, width = kv.shape
    shape = (batch, ratio, width // 2 * 3 if overlap else width)
    expect("state.kv", state[0], (kv.dtype,), shape, kv.device)
    expect("state.gate", state[1], (kv.dtype,), shape, kv.device)
    expect("state.position", state[2], (torch.int32,), shape[:1], kv.device)


def _compress_impl(
    kv: Tensor,
    gate: Tensor,
    position_bias: Tensor,
    norm_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    state_kv: Tensor,
    state_gate: Tensor,
    position: Tensor,
    lengths: Tensor,
    ratio: int,
    count: int,
    eps: float,
    backend: str | None,
) -> Tensor:
    D = norm_weight.shape[0]
    entries = kv.new_empty((kv.shape[0], count, D))
    if entries.numel():
        given = {"ratio": ratio, "overlap": kv.shape[2] == 2 * D, "D": D, "pairs": cos.shape[1], "eps": eps}
        run = compiled("compress", kv.device, backend, kv.dtype, **given)
        weights = (position_bias, norm_weight, cos, sin)
        run(rows(kv), rows(gate), *weights, state_kv, state_gate, position, lengths, rows(entries))
    return entries


def _compress_fake(kv: Tensor, gate: Tensor, position_bias: Tensor, norm_weight: Tensor, *rest: Any) -> Tensor:
    _, count, _, _ = rest[-4:]
    return kv.new_empty((kv.shape[0], count, norm_weight.shape[0]))


def _state_impl(
    kv: Tensor,
    gate: Tensor,
    state_kv: Tensor,
    state_gate: Tensor,
    position: Tensor,
    lengths: Tensor,
    backend: str | None,
) -> None:
    if kv.numel():
        _, ratio, kept = state_kv.shape
        overlap = kept != kv.shape[2]
        D = kept // 3 if overlap else kept
        run = compiled("compress_state", kv.device, backend, kv.dtype, ratio=ratio, overlap=overlap, D=D)
        run(rows(kv), rows(gate), position, lengths, state_kv, state_gate)
        position.add_(lengths)


def _state_fake(*_: Any) -> None:
    return None


_compress_op = define(
    "compress(Tensor kv, Tensor gate, Tensor position_bias, Tensor norm_weight, Tensor cos, Tensor sin, "
    "Tensor state_kv, Tensor state_gate, Tensor position, Tensor lengths, int ratio, int count, float eps, "
    "str? backend) -> Tensor",
    _compress_impl,
    _compress_fake,
)
_state_op = define(
    "compress_state(Tensor kv, Tensor gate, Tensor(a!) state_kv, Tensor(b!) state_gate, Tensor(c!) position, "
    "Tensor lengths, str? backend) -> ()",
    _state_impl,
    _state_fake,
)
register()
