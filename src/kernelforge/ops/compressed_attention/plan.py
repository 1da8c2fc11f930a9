"""Compressed attention: the kernels of a call."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from ...backends import Executable
from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ...numerics.attention import CHUNK, window_slots
from ...runtime import KernelSpec, executable, schedule
from ..support import choose_device
from .problem import Arguments, Problem, check, factor_bits

NEEDS = frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32})
BUILDER = "kernelforge.ops.compressed_attention.kernel:"


class Plan(NamedTuple):
    """Kernels of a call and what they take besides the caller's tensors; no kernels where there is nothing to do."""

    problem: Problem
    fused: Executable | None
    parts: Executable | None
    merge: Executable | None
    sizes: torch.Tensor
    chunk_slots: torch.Tensor
    window_slots: int


@functools.lru_cache(maxsize=4096)
def plan_call(
    given: Arguments, window: int, scale: float, ratio: int, numerics: str, backend: str | None, threads: int
) -> Plan:
    problem = check(given, window, scale, ratio)
    device = choose_device(backend, given.q.device)
    here = given.q.device
    chunks = -(-(problem.topk or problem.N) // CHUNK)
    pages = 0 if given.block_table is None else given.block_table.shape[1]
    sizes = torch.tensor([problem.S, problem.T, problem.N, pages], dtype=torch.int32, device=here)
    slots = torch.zeros(chunks, dtype=torch.int8, device=here)
    raw_slots = window_slots(window)
    if problem.B * problem.S == 0:
        return Plan(problem, None, None, None, sizes, slots, raw_slots)
    tiles = dict(
        schedule(
            "compressed_attention",
            device,
            kernel="attention",
            queries=problem.B * problem.S,
            chunks=chunks + raw_slots,
            threads=threads,
            **{name: getattr(problem, name) for name in ("H", "D", "topk")},
        )
    )
    splits, merge_H = tiles.pop("splits"), tiles.pop("merge_block_H")
    heads = -(-problem.H // 16) * 16
    tiles["block_H"], tiles["block_D"] = min(tiles["block_H"], heads), math.gcd(tiles["block_D"], problem.D)
    shared = {"H": problem.H, "D": problem.D, "window": window}
    finder = {
        "ratio": 1 if problem.topk else ratio,
        "topk": problem.topk,
        "page": problem.page,
        "factor_bits": factor_bits(scale),
        "native": numerics == "native",
    }

    def kernel(name: str, **parameters: int) -> Executable:
        return executable(KernelSpec.of(BUILDER + name, NEEDS, **shared, **parameters), device)

    if splits == 1:
        return Plan(
            problem, kernel("attention", rope=problem.rope, **finder, **tiles), None, None, sizes, slots, raw_slots
        )
    merge_tiles = {"block_H": min(merge_H, heads), "block_D": tiles["block_D"], "threads": tiles["threads"]}
    return Plan(
        problem,
        None,
        kernel("attention_parts", splits=splits, **finder, **tiles),
        kernel("attention_merge", rope=problem.rope, **merge_tiles),
        sizes,
        slots,
        raw_slots,
    )
