"""Conformance cases of the mixture of experts, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16, mx
from ...runtime import KernelSpec, schedule
from ..spec import Arrays, Case, seeded
from . import reference

DATA = ("normal", "codes", "zeros", "nan", "infinity", "scale_zero", "scale_nan", "huge", "tiny")
"""``normal`` is random values of ordinary size, ``codes`` uniformly random bytes; the others set one thing on top."""
ROUTES = ("spread", "one", "dropped", "all_dropped")
"""Experts drawn for each token; all tokens to one expert; a third of the slots dropped; all of them."""
LIMITS = (1.5, np.inf)


@dataclass(frozen=True)
class Problem:
    """Shapes, routing and data of a case."""

    tokens: int
    slots: int
    experts: int
    hidden: int
    inter: int
    limit: float
    route: str
    data: str
    seed: int

    @property
    def name(self) -> str:
        shape = f"{self.tokens}x{self.slots}/{self.experts}x{self.hidden}x{self.inter}"
        return f"{shape}/limit-{self.limit}/{self.route}/{self.data}"


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: one layer, every kind of routing and of data. ``full``: other shapes, and no clamp."""
    for problem in _ci(seed) if size == "ci" else _full(seed):
        yield Case(problem.name, functools.partial(_expected, problem), functools.partial(_run, problem))


def _ci(seed: int) -> Iterator[Problem]:
    layer = (3, 5, 96, 96)  # no extent is a multiple of a tile's
    for data in DATA:
        yield Problem(9, *layer, LIMITS[0], "spread", data, seed)
    for route in ROUTES[1:]:
        yield Problem(9, *layer, LIMITS[0], route, "normal", seed)
    for tokens in (0, 1):
        yield Problem(tokens, *layer, LIMITS[0], "spread", "normal", seed)


def _full(seed: int) -> Iterator[Problem]:
    for slots, experts, hidden, inter in ((1, 1, 32, 32), (3, 5, 96, 96), (6, 16, 256, 160)):
        for limit in LIMITS:
            for tokens in (0, 1, 9, 40):
                for route in ROUTES:
                    for data in DATA if tokens == 9 else ("normal", "codes"):
                        yield Problem(tokens, slots, experts, hidden, inter, limit, route, data, seed)


FLASH = {"hidden": 4096, "inter": 2048, "experts": 256, "slots": 6}
"""A layer of DeepSeek-V4-Flash."""
PRO = {"hidden": 7168, "inter": 3072, "experts": 384, "slots": 6}
"""A layer of DeepSeek-V4-Pro."""


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """The kernels of a layer of DeepSeek-V4-Flash at 1024 tokens."""
    return layer_kernels(device, **FLASH)


def layer_kernels(device: str, hidden: int, inter: int, experts: int, slots: int) -> Mapping[str, KernelSpec]:
    """The kernels of a layer at 1024 tokens, its activation's gradient among them."""
    from ..mxfp4_gemm.op import BUILDER as GEMM
    from .local import KERNELS, NEEDS

    gemm = {"N": hidden, "K": inter, "experts": experts, "a_format": "e4m3_e8m0", "out_dtype": "float32"}
    given: dict[str, tuple[str, str, dict[str, Any]]] = {
        "count": ("plan", f"{KERNELS}.plan:moe_count", {"experts": experts}),
        "place": ("plan", f"{KERNELS}.plan:moe_place", {"experts": experts}),
        "linear1": (
            "linear1",
            f"{KERNELS}.linear1:moe_linear1",
            {"inter": inter, "hidden": hidden, "experts": experts, "limit": 10.0},
        ),
        "linear2": ("linear2", GEMM, gemm),
        "combine": ("combine", f"{KERNELS}.combine:moe_combine", {"hidden": hidden, "slots": slots}),
        "activation_backward": (
            "activation_backward",
            f"{KERNELS}.backward:moe_activation_backward",
            {"inter": inter, "limit": 10.0},
        ),
    }
    found = {}
    for name, (kernel, builder, extents) in given.items():
        per_expert = -(-1024 * slots // experts)
        tiles = schedule("mega_moe", device, kernel=kernel, rows=1024 * slots, rows_per_expert=per_expert)
        found[name] = KernelSpec.of(builder, NEEDS, **extents, **tiles)
    return found


Operands = tuple[NDArray[np.uint16], NDArray[np.int32], NDArray[np.float32], tuple[NDArray[np.uint8], ...]]


@functools.lru_cache(maxsize=128)
def operands(problem: Problem) -> Operands:
    """x, topk_idx, topk_weight and the experts, drawn from the problem's name and seed alone."""
    draw = seeded(problem.seed, problem.name)
    values = draw.standard_normal((problem.tokens, problem.hidden))
    x = bf16.encode(
        (values * {"huge": 2.0**60, "tiny": 2.0**-48, "zeros": 0.0}.get(problem.data, 1.0)).astype(np.float32)
    )
    if problem.data == "codes":
        x = draw.integers(0, 1 << 16, x.shape).astype(np.uint16)
    if problem.data in ("nan", "infinity"):
        x.reshape(-1)[::53] = 0x7FC1 if problem.data == "nan" else 0xFF80
    weight = draw.uniform(0, 1, (problem.tokens, problem.slots)).astype(np.float32)
    if problem.data == "codes":
        weight = draw.integers(0, 1 << 32, weight.shape, dtype=np.uint32).view(np.float32)
    return x, _route(draw, problem), weight, _experts(draw, problem)


def _route(draw: np.random.Generator, problem: Problem) -> NDArray[np.int32]:
    shape = (problem.tokens, problem.slots)
    chosen = np.argsort(draw.random((problem.tokens, problem.experts)), -1)[:, : problem.slots].astype(np.int32)
    if problem.route == "one":
        return np.full(shape, problem.experts - 1, np.int32)
    if problem.route == "all_dropped":
        return np.full(shape, -1, np.int32)
    if problem.route == "dropped":
        return np.where(draw.random(shape) < 1 / 3, np.int32(-1), chosen)
    return chosen


def _experts(draw: np.random.Generator, problem: Problem) -> tuple[NDArray[np.uint8], ...]:
    found: list[NDArray[np.uint8]] = []
    for rows, columns in ((2 * problem.inter, problem.hidden), (problem.hidden, problem.inter)):
        shape = (problem.experts, rows, columns)
        if problem.data == "codes":
            packed = draw.integers(0, 256, (*shape[:-1], columns // 2)).astype(np.uint8)
            scale = draw.integers(0, 256, (*shape[:-1], columns // mx.BLOCK)).astype(np.uint8)
        else:
            values = draw.standard_normal(shape) * 2 * columns**-0.5
            packed, scale = mx.quantize_mxfp4(values.astype(np.float32))
        if problem.data in ("scale_zero", "scale_nan"):
            scale.reshape(-1)[::61] = 0 if problem.data == "scale_zero" else 0xFF
        found += [packed, scale]
    return tuple(found)


def _expected(problem: Problem) -> Arrays:
    x, chosen, weight, (w1, w1_scale, w2, w2_scale) = operands(problem)
    plan = reference.dispatch_plan(chosen, problem.experts)
    out = reference.mega_moe(x, chosen, weight, (w1, w1_scale, w2, w2_scale), problem.limit)
    return {"order": plan.order, "offsets": plan.offsets, "inverse": plan.inverse, "out": out}


def _run(problem: Problem, device: str) -> Arrays:
    import torch

    from ... import backends
    from .local import dispatch_plan
    from .op import mega_moe

    owner, chosen = backends.device(device)
    home = "cpu" if chosen.virtual else owner.tensor_device
    x, routed, weight, experts = operands(problem)
    given = [torch.from_numpy(np.ascontiguousarray(array)).to(home) for array in (x, routed, weight, *experts)]
    plan = dispatch_plan(given[1], problem.experts, device)
    tokens, routed_to, weights, w1, w1_scale, w2, w2_scale = given
    operands_of = (tokens.view(torch.bfloat16), routed_to, weights, w1, w1_scale, w2, w2_scale)
    out = mega_moe(*operands_of, None, "auto", problem.limit, backend=device)
    found = {name: value.cpu().numpy() for name, value in plan._asdict().items()}
    return {**found, "out": out.cpu().view(torch.uint16).numpy()}
