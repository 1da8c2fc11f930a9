"""A mixture-of-experts layer over the ranks of a group: what rows hold, and what is computed when they arrive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from ...mx_quantize.op import quantize_mxfp8
from ...support import expect, meta
from .. import local
from ..schedule import SCHEDULES, dispatch_row, program, result_row
from ..schedule.program import AUTO, require_schedule, wave_argument
from .agree import Agreement, agree
from .engine import Arrived
from .errors import PeerRefused
from .measured import choose_waves
from .session import Session, session
from .waves import WavePlan


class Experts(NamedTuple):
    """This rank's experts."""

    w1: torch.Tensor
    w1_scale: torch.Tensor
    w2: torch.Tensor
    w2_scale: torch.Tensor
    limit: float | None
    backend: str | None

    @property
    def hidden(self) -> int:
        return int(self.w2.shape[1])

    @property
    def inter(self) -> int:
        return int(self.w1.shape[1]) // 2

    @property
    def local(self) -> int:
        return int(self.w1.shape[0])


def mega_moe_over(
    group: dist.ProcessGroup,
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weight: torch.Tensor,
    weights: Sequence[torch.Tensor],
    swiglu_limit: float | None,
    waves: int | str,
    schedule: str,
    backend: str | None,
) -> torch.Tensor:
    """:func:`kernelforge.mega_moe` over a group; ``weights`` are w1, w1_scale, w2, w2_scale."""
    w1, w1_scale, w2, w2_scale = weights
    experts = Experts(w1, w1_scale, w2, w2_scale, swiglu_limit, backend)
    return forward(session(group, x.device), x, topk_idx, topk_weight, experts, waves, schedule)


def forward(
    opened: Session,
    x: torch.Tensor,
    topk_idx: torch.Tensor,
    topk_weight: torch.Tensor,
    experts: Experts,
    waves: int | str,
    schedule: str,
) -> torch.Tensor:
    """The layer's output for this rank's tokens, ``bfloat16`` [T, hidden]; all ranks of the session must call.

    Raises:
        TypeError, ValueError: this rank's arguments are wrong; the other ranks are told and raise :class:`PeerRefused`.
        MoeCommunicationError: a rank was lost.
    """
    engine = opened.engine
    with engine.call() as call:
        size = engine.transport.size
        measured = opened.measured_for(experts.hidden, experts.inter, experts.local)
        problem: Exception | None = None
        plan, fields = None, {}
        counts = np.zeros(size * experts.local, dtype=np.int64)
        try:
            _check(x, topk_idx, topk_weight, experts)
            fields = _fields(experts, waves, schedule)
            plan = local.dispatch_plan(topk_idx, size * experts.local, experts.backend)
            counts = np.diff(plan.offsets.cpu().numpy()).astype(np.int64)
        except Exception as error:
            problem = error
        agreed = _agree(opened, call, fields, counts, measured.costs(), problem)
        assert plan is not None
        costs = agreed.rates[0], agreed.rates[1], agreed.rates[2]
        asked = wave_argument(waves)
        if asked == AUTO:
            asked = choose_waves(agreed.counts, experts.hidden, costs, *agreed.rates[3:5])
        cut = WavePlan(
            agreed.counts, engine.transport.rank, 1 if schedule == "serial" else asked, *_weights(costs[0], costs[1])
        )
        rows = _pack(opened, x, topk_weight, plan, experts.backend)
        compute = _Compute(opened, experts, measured)
        results = engine.run(program(schedule, cut.waves), cut, rows, compute, result_row(experts.hidden))
        return local.combine(results.view(torch.float32), plan.inverse, experts.backend)


def _check(x: torch.Tensor, topk_idx: torch.Tensor, topk_weight: torch.Tensor, experts: Experts) -> None:
    given = meta(x)
    assert given is not None
    local.check_experts(meta(experts.w1), meta(experts.w1_scale), meta(experts.w2), meta(experts.w2_scale), given)
    expect("x", given, (torch.bfloat16,), ("T", experts.hidden), x.device)
    expect("topk_idx", meta(topk_idx), (torch.int32,), (x.shape[0], "k"), x.device)
    expect("topk_weight", meta(topk_weight), (torch.float32,), tuple(topk_idx.shape), x.device)


def _weights(row: float, expert: float) -> tuple[float, float]:
    """By which waves are balanced; by rows alone until something was measured."""
    return (row, expert) if row or expert else (1.0, 0.0)


def _fields(experts: Experts, waves: int | str, schedule: str) -> dict[str, int]:
    require_schedule(schedule)
    return {
        "hidden": experts.hidden,
        "inter": experts.inter,
        "experts per rank": experts.local,
        "swiglu_limit (its bits)": int(np.float64(local.clamp_limit(experts.limit)).view(np.int64)),
        "waves": wave_argument(waves),
        "schedule (its number)": SCHEDULES.index(schedule),
    }


def _agree(
    session: Session,
    call: int,
    fields: dict[str, int],
    counts: Any,
    costs: tuple[float, float, float],
    problem: Exception | None,
) -> Agreement:
    engine = session.engine
    rates = (*costs, session.seconds_per_byte, session.latency)
    said = "" if problem is None else f"{type(problem).__name__}: {problem}"
    outcome: list[Agreement | PeerRefused] = []

    def exchange() -> None:
        try:
            outcome.append(agree(engine.transport, engine.device, call, fields, counts, rates, said, engine.timeout))
        except PeerRefused as refused:
            outcome.append(refused)

    engine.perform(exchange)
    if problem is not None:  # this rank's own reason comes first
        raise problem
    if isinstance(outcome[0], PeerRefused):
        raise outcome[0]
    return outcome[0]


def _pack(
    session: Session, x: torch.Tensor, topk_weight: torch.Tensor, plan: local.Plan, backend: str | None
) -> torch.Tensor:
    """This rank's rows as they travel, sorted by expert: MXFP8 elements, scales, the weight in the last four bytes."""
    buffers = session.engine.buffers
    hidden, slots = x.shape[1], max(topk_weight.shape[1], 1)
    row_bytes = dispatch_row(hidden)
    codes, scale = quantize_mxfp8(x, backend=backend)
    tokens = buffers.take("tokens", x.shape[0], row_bytes)
    tokens[:, :hidden] = codes.view(torch.uint8)
    tokens[:, hidden : hidden + scale.shape[1]] = scale
    pair = plan.order[: int(plan.offsets[-1])].long()
    rows = buffers.take("packed", pair.shape[0], row_bytes)
    torch.index_select(tokens, 0, pair // slots, out=rows)
    rows.view(torch.float32)[:, -1] = topk_weight.flatten()[pair]
    return rows


class _Compute:
    """An expert's two products, each one kernel, on the rows of a wave."""

    def __init__(self, session: Session, experts: Experts, measured: Any) -> None:
        self._buffers, self._experts, self._measured = session.engine.buffers, experts, measured
        self._on_cpu = session.engine.device.type == "cpu"
        self._seconds = 0.0

    def linear1(self, wave: int, arrived: Arrived) -> Any:
        experts, rows = self._experts, arrived.rows
        hidden, count = experts.hidden, rows.shape[0]
        if count == 0:
            return None
        begin = time.perf_counter()
        x = self._buffers.take("x", count, hidden)
        x.copy_(rows[:, :hidden])
        scale = self._buffers.take("x scale", count, hidden // local.BLOCK)
        scale.copy_(rows[:, hidden : hidden + hidden // local.BLOCK])
        weight = self._buffers.take("weight", count, 4).view(torch.float32).view(-1)
        weight.copy_(rows.view(torch.float32)[:, -1])
        weights = experts[:4]
        operands = (x.view(torch.float8_e4m3fn), scale, arrived.offsets, weight)
        described = (meta(tensor) for tensor in (*operands, *weights))
        kernels = local.ffn_kernels(*described, local.clamp_limit(experts.limit), experts.backend, arrived.experts)
        assert kernels is not None
        h = rows.new_empty((count, experts.inter))
        h_scale = rows.new_empty((count, experts.inter // local.BLOCK))
        w1, w1_scale = (tensor.flatten(0, 1) for tensor in weights[:2])
        kernels.linear1(operands[0], scale, w1, w1_scale, arrived.offsets, weight, h, h_scale)
        return kernels, h, h_scale, time.perf_counter() - begin

    def linear2(self, wave: int, arrived: Arrived, state: Any) -> torch.Tensor:
        experts, count = self._experts, arrived.rows.shape[0]
        y = self._buffers.take("y", count, result_row(experts.hidden))
        if state is None:
            return y
        kernels, h, h_scale, seconds = state
        begin = time.perf_counter()
        w2, w2_scale = (tensor.flatten(0, 1) for tensor in experts[2:4])
        kernels.linear2(h, h_scale, w2, w2_scale, arrived.offsets, y.view(torch.float32))
        if self._on_cpu:
            self._measured.add(count, arrived.experts, seconds + time.perf_counter() - begin)
        return y
