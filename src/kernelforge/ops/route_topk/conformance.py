"""Conformance cases of the choice of experts, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime import KernelSpec, schedule
from ..spec import Arrays, Case, seeded
from . import reference

SCORES = ("sqrtsoftplus", "sigmoid", "softmax")
DATA = ("normal", "ties", "bits", "special", "extreme")
"""``ties``: few distinct values. ``bits``: random bit patterns. ``special``: NaN, infinities, zeros, subnormals among
ordinary values. ``extreme``: magnitudes up to 1000, so that most scores are 0, 1 or tiny."""
_SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 2.0**-51], np.float32)


@dataclass(frozen=True)
class Problem:
    """Shapes, variant and data of a case."""

    tokens: int
    experts: int
    k: int
    score: str
    renormalize: bool
    scale: float
    hashed: bool
    data: str
    seed: int

    @property
    def name(self) -> str:
        kind = f"{self.score}{'/renormalized' if self.renormalize else ''}{'/hash' if self.hashed else ''}"
        return f"{kind}/{self.tokens}x{self.experts}/{self.k}/x{self.scale}/{self.data}"


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: each score in one variant, and hash routing. ``full``: all combinations."""
    for problem in _ci(seed) if size == "ci" else _full(seed):
        yield Case(problem.name, functools.partial(_expected, problem), functools.partial(_run, problem))


def _ci(seed: int) -> Iterator[Problem]:
    for score, renormalize, scale, hashed in (
        ("sqrtsoftplus", True, 1.5, False),
        ("sigmoid", True, 2.5, True),
        ("softmax", False, 1.0, False),
    ):
        for data in DATA:
            yield Problem(37, 70, 6, score, renormalize, scale, hashed, data, seed)
        for tokens in (0, 1):
            yield Problem(tokens, 70, 6, score, renormalize, scale, hashed, "normal", seed)


def _full(seed: int) -> Iterator[Problem]:
    for score in SCORES:
        for renormalize in (False, True):
            for hashed in (False, True):
                for experts, k in ((4, 4), (70, 6), (256, 8)):
                    for tokens in (0, 1, 37):
                        for data in DATA:
                            yield Problem(tokens, experts, k, score, renormalize, 1.5, hashed, data, seed)


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """The routers of DeepSeek-V4-Flash."""
    from .op import BACKWARD, BUILDER, NEEDS

    found = {}
    problem = {"experts": 256, "k": 6, "score": "sqrtsoftplus", "renormalize": True, "scale": 1.5}
    tiles = schedule("route_topk", device, tokens=1024, **problem)
    for name, given in (("topk", False), ("hash", True)):
        found[name] = KernelSpec.of(BUILDER, NEEDS, given=given, **problem, **tiles)
    found["backward"] = KernelSpec.of(BACKWARD, NEEDS, **problem, **tiles)
    return found


Operands = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32] | None]


@functools.lru_cache(maxsize=128)
def operands(problem: Problem) -> Operands:
    """Logits, bias and, for hash routing, the experts; drawn from the problem's name and seed alone."""
    draw = seeded(problem.seed, problem.name)
    shape = (problem.tokens, problem.experts)
    logits = draw.standard_normal(shape).astype(np.float32) * np.float32(3)
    bias = draw.standard_normal(problem.experts).astype(np.float32) * np.float32(0.1)
    if problem.data == "ties":
        logits, bias = np.round(logits), np.zeros_like(bias)
    if problem.data == "bits":
        logits = draw.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)
    if problem.data == "special":
        logits = np.where(draw.random(shape) < 0.2, draw.choice(_SPECIAL, shape), logits)
    if problem.data == "extreme":
        logits = (logits * np.float32(100)).astype(np.float32)
    hashed = None
    if problem.hashed:
        keys = draw.random(shape)
        hashed = np.argsort(keys, -1)[:, : problem.k].astype(np.int32)
    return logits, bias, hashed


def gradients(problem: Problem) -> dict[str, NDArray[np.float32]]:
    """Gradients of the weights, by the name of the logits' gradient: ordinary ones, and random bit patterns."""
    draw = seeded(problem.seed, problem.name, "gradient")
    shape = (problem.tokens, problem.k)
    ordinary = draw.standard_normal(shape).astype(np.float32)
    return {
        "gradient": ordinary,
        "gradient of bits": draw.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32),
    }


def _expected(problem: Problem) -> Arrays:
    logits, bias, hashed = operands(problem)
    chosen, weights = reference.route_topk(
        logits, bias, problem.k, problem.score, problem.renormalize, problem.scale, hashed
    )
    found = {"experts": chosen, "weights": weights}
    for name, grad in gradients(problem).items():
        found[name] = reference.route_topk_backward(
            grad, logits, chosen, problem.score, problem.renormalize, problem.scale
        )
    return found


def _run(problem: Problem, device: str) -> Arrays:
    import torch

    from ... import backends
    from .op import backward, route_topk

    owner, chosen = backends.device(device)
    home = "cpu" if chosen.virtual else owner.tensor_device
    logits, bias, hashed = operands(problem)
    hashing: dict[str, Any] = {}
    if hashed is not None:  # token t is word t
        hashing = {"hash_table": torch.from_numpy(hashed).to(home), "token_ids": torch.arange(problem.tokens).to(home)}
    scores = torch.from_numpy(logits).to(home)
    experts, weights = route_topk(
        scores,
        torch.from_numpy(bias).to(home),
        problem.k,
        score=problem.score,
        renormalize=problem.renormalize,
        scale=problem.scale,
        backend=device,
        **hashing,
    )
    found = {"experts": experts.cpu().numpy(), "weights": weights.cpu().numpy()}
    for name, grad in gradients(problem).items():
        given = torch.from_numpy(grad).to(home)
        options = problem.score, problem.renormalize, problem.scale
        found[name] = backward(given, scores, experts, *options, device).cpu().numpy()
    return found
