"""Choice of experts: public function, checks, torch registration."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ...backends import Executable
from ...backends.capabilities import FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, schedule
from ..support import LIBRARY, Meta, choose_device, define, expect, meta, require_numerics, require_tensor

SCORES = ("sqrtsoftplus", "sigmoid", "softmax")
NEEDS = frozenset({FP32_IEEE, INT32})
BUILDER = "kernelforge.ops.route_topk.kernel:route_topk"
BACKWARD = "kernelforge.ops.route_topk.kernel:route_topk_backward"
_SCALES = (2.0**-20, 2.0**20)


def route_topk(
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    *,
    score: str = "sqrtsoftplus",
    renormalize: bool = True,
    scale: float = 1.0,
    hash_table: torch.Tensor | None = None,
    token_ids: torch.Tensor | None = None,
    numerics: str = "exact",
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose k experts for each token and weigh them. The weights are differentiable in ``scores``; ``bias`` has no
    gradient, as it takes no part in them.

    Args:
        scores: the router's logits, float32 [T, E].
        bias: float32 [E], added to the scores for the choice alone (the correction that balances experts), or None.
        k: experts per token.
        score: ``"sqrtsoftplus"`` (DeepSeek-V4), ``"sigmoid"`` or ``"softmax"``: what makes scores of logits.
        renormalize: divide a token's k scores by their sum.
        scale: factor of all weights (the routed scaling factor), between 2^-20 and 2^20.
        hash_table: hash routing: int32 or int64 [vocabulary, k], the experts of each token id; the logits then only
            weigh them, and ``bias`` is not used.
        token_ids: integers, T of them in any shape; given with ``hash_table``.
        numerics: ``"exact"``, the contract of ``docs/numerics.md`` (choice of experts).
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        Experts, int32 [T, k], by (score + bias descending, index ascending), a NaN last; and weights, float32 [T, k].

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted. On the CPU
            that includes the content of ``hash_table`` rows that are used.
        DeviceUnavailable: the device cannot run here.
    """
    require_numerics("route_topk", numerics)
    require_tensor("scores", scores)
    if score not in SCORES:
        raise ValueError(f"score: given {score!r}, wanted one of {', '.join(map(repr, SCORES))}")
    if not _SCALES[0] <= scale <= _SCALES[1]:
        raise ValueError(f"scale: given {scale}, wanted a number from 2^-20 to 2^20")
    given = None
    if hash_table is not None:
        given = _looked_up(hash_table, token_ids, scores, k)
    elif token_ids is not None:
        raise ValueError("token_ids: given without hash_table, the table in which they are looked up")
    chosen, weights = _route(scores, bias, given, k, score, renormalize, float(scale), backend)
    return chosen, weights


def _looked_up(hash_table: torch.Tensor, token_ids: torch.Tensor | None, scores: torch.Tensor, k: int) -> torch.Tensor:
    require_tensor("hash_table", hash_table)
    require_tensor("token_ids", token_ids)
    assert token_ids is not None
    table = expect("hash_table", meta(hash_table), (torch.int32, torch.int64), ("vocabulary", k), scores.device)
    if token_ids.is_floating_point() or token_ids.numel() != scores.shape[0]:
        raise ValueError(
            f"token_ids: given {meta(token_ids)}, wanted {scores.shape[0]} integers, one for each row of scores"
        )
    ids = token_ids.reshape(-1).long()
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= table.shape[0]:
            raise ValueError(
                f"token_ids: given ids from {low} to {high}, hash_table has rows 0 to {table.shape[0] - 1}"
            )
    return hash_table[ids].int()


@functools.lru_cache(maxsize=1024)
def _kernel(
    scores: Meta,
    bias: Meta | None,
    given: Meta | None,
    k: int,
    score: str,
    renormalize: bool,
    scale: float,
    backend: str | None,
) -> Executable | None:
    scores = expect("scores", scores, (torch.float32,), ("T", "E"), scores.device)
    tokens, experts = scores.shape
    if not 1 <= k <= experts:
        raise ValueError(f"k: given {k}, wanted 1 to E = {experts}")
    if bias is not None:
        expect("bias", bias, (torch.float32,), (experts,), scores.device)
    if given is not None:
        expect("given", given, (torch.int32,), (tokens, k), scores.device)
    device = choose_device(backend, scores.device)
    if tokens == 0:
        return None
    problem = {"experts": experts, "k": k, "score": score, "renormalize": renormalize, "scale": scale}
    tiles = schedule("route_topk", device, tokens=tokens, **problem)
    return executable(KernelSpec.of(BUILDER, NEEDS, given=given is not None, **problem, **tiles), device)


def _impl(
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    given: torch.Tensor | None,
    k: int,
    score: str,
    renormalize: bool,
    scale: float,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    run = _kernel(meta(scores), meta(bias), meta(given), k, score, renormalize, scale, backend)
    chosen, weights = _fake(scores, bias, given, k, score, renormalize, scale, backend)
    if given is not None:
        if given.device.type == "cpu" and given.numel():
            low, high = (int(bound) for bound in torch.aminmax(given))
            if low < 0 or high >= scores.shape[1]:
                raise ValueError(
                    f"hash_table: names experts from {low} to {high}, scores have 0 to {scores.shape[1] - 1}"
                )
        chosen.copy_(given)
    if run is not None:
        run(scores, scores.new_zeros(scores.shape[1]) if bias is None else bias, chosen, weights)
    return chosen, weights


def _fake(
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    given: torch.Tensor | None,
    k: int,
    score: str,
    renormalize: bool,
    scale: float,
    backend: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (scores.shape[0], k)
    return scores.new_empty(shape, dtype=torch.int32), scores.new_empty(shape)


_route = define(
    "route_topk(Tensor scores, Tensor? bias, Tensor? given, int k, str score, bool renormalize, float scale, "
    "str? backend) -> (Tensor, Tensor)",
    _impl,
    _fake,
)


@functools.lru_cache(maxsize=1024)
def _backward_kernel(
    grad: Meta, scores: Meta, chosen: Meta, score: str, renormalize: bool, scale: float, backend: str | None
) -> Executable | None:
    scores = expect("scores", scores, (torch.float32,), ("T", "E"), scores.device)
    tokens, experts = scores.shape
    chosen = expect("chosen", chosen, (torch.int32,), (tokens, "k"), scores.device)
    expect("grad", grad, (torch.float32,), tuple(chosen.shape), scores.device)
    device = choose_device(backend, scores.device)
    if tokens == 0:
        return None
    problem = {"experts": experts, "k": chosen.shape[1], "score": score, "renormalize": renormalize, "scale": scale}
    tiles = schedule("route_topk", device, tokens=tokens, **problem)
    return executable(KernelSpec.of(BACKWARD, NEEDS, **problem, **tiles), device)


def _backward_impl(
    grad: torch.Tensor,
    scores: torch.Tensor,
    chosen: torch.Tensor,
    score: str,
    renormalize: bool,
    scale: float,
    backend: str | None,
) -> torch.Tensor:
    described: list[Any] = [meta(tensor) for tensor in (grad, scores, chosen)]
    run = _backward_kernel(*described, score, renormalize, scale, backend)
    out = torch.empty_like(scores)
    if run is not None:
        run(grad, scores, chosen, out)
    return out


def _backward_fake(
    grad: torch.Tensor,
    scores: torch.Tensor,
    chosen: torch.Tensor,
    score: str,
    renormalize: bool,
    scale: float,
    backend: str | None,
) -> torch.Tensor:
    return torch.empty_like(scores)


backward = define(
    "route_topk_backward(Tensor grad, Tensor scores, Tensor chosen, str score, bool renormalize, float scale, "
    "str? backend) -> Tensor",
    _backward_impl,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    scores, _, _, _, *ctx.options = inputs
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(scores, output[0])


def _gradient(ctx: Any, _: torch.Tensor | None, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    found = backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options)
    return found, None, None, None, None, None, None, None


torch.library.register_autograd("kernelforge::route_topk", _gradient, setup_context=_save, lib=LIBRARY)
