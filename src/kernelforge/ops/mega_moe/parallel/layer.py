"""A mixture-of-experts layer over the ranks of a group: what rows hold, and what is computed when they arrive."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ...mx_quantize.op import quantize_mxfp8
from ...support import expect, meta
from .. import local
from ..schedule import SCHEDULES, dispatch_row, program, result_row
from ..schedule.program import AUTO, require_schedule, wave_argument
from .agree import Agreement
from .buffers import Buffers
from .errors import PeerRefused
from .measured import Measured, choose_waves
from .program import Arrived, Compute, execute
from .session import Session
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


class Tokens(NamedTuple):
    """This rank's tokens, and where they go."""

    x: torch.Tensor
    topk_idx: torch.Tensor
    topk_weight: torch.Tensor


class Rows(NamedTuple):
    """This rank's rows in the order in which they travel.

    Attributes:
        pair: int64 [rows]: ``token * k + slot`` of each.
        inverse: int32 [T, k]: the row of each pair, -1 where it is dropped.
    """

    pair: torch.Tensor
    inverse: torch.Tensor


class Passage(Protocol):
    """One direction of a layer: what its rows hold on their way to an expert and back, and what is done with them."""

    number: int
    """Tells the directions apart: ranks must go in the same one."""
    row_bytes: int
    result_bytes: int

    def check(self) -> None:
        """Raise ``TypeError`` or ``ValueError`` if this rank's arguments are wrong."""

    def tokens(self, session: Session) -> torch.Tensor:
        """What a row of each token holds, but for the weight: uint8 [T, row_bytes]. Made while ranks agree."""

    def compute(self, session: Session, measured: Measured) -> Compute:
        """What is done with a wave."""


def travel(
    opened: Session, tokens: Tokens, experts: Experts, waves: int | str, schedule: str, passage: Passage
) -> tuple[torch.Tensor, Rows]:
    """Send rows to their experts' ranks and fetch what becomes of them; all ranks of the session must call.

    Returns:
        uint8 [rows, result_bytes], valid until the next call, and which rows they are.

    Raises:
        TypeError, ValueError: this rank's arguments are wrong; the other ranks are told and raise :class:`PeerRefused`.
        MoeCommunicationError: a rank was lost.
    """
    engine = opened.engine
    with engine.call() as call:
        size = engine.transport.size
        measured = opened.measured_for(experts.hidden, experts.inter, experts.local, passage.number)
        problem: Exception | None = None
        plan, fields = None, {}
        counts = np.zeros(size * experts.local, dtype=np.int64)
        try:
            passage.check()
            fields = _fields(experts, waves, schedule, passage.number)
            plan = local.dispatch_plan(tokens.topk_idx, size * experts.local, experts.backend)
            counts = np.diff(plan.offsets.cpu().numpy()).astype(np.int64)
        except Exception as error:
            problem = error
        made: list[torch.Tensor] = []
        agreed = _agree(
            opened, call, fields, counts, measured.costs(), problem, lambda: made.append(passage.tokens(opened))
        )
        assert plan is not None
        costs = agreed.rates[0], agreed.rates[1], agreed.rates[2]
        asked = wave_argument(waves)
        if asked == AUTO:
            sizes = passage.row_bytes, passage.result_bytes
            asked = choose_waves(agreed.counts, sizes, costs, *agreed.rates[3:5])
        cut = WavePlan(
            agreed.counts, engine.transport.rank, 1 if schedule == "serial" else asked, *_weights(costs[0], costs[1])
        )
        with engine.guarded():
            compute = passage.compute(opened, measured)
            rows = _rows(plan, cut)
        pack = functools.partial(_pack, opened.engine.buffers, made[0], tokens.topk_weight, rows, experts.hidden)
        steps = program(schedule, cut.waves)
        results = execute(engine, steps, cut, passage.row_bytes, pack, compute, passage.result_bytes)
        measured.add_handling(engine.handling / cut.waves)
        return results, rows


def _rows(plan: local.Plan, cut: WavePlan) -> Rows:
    travelling = torch.from_numpy(cut.travelling).to(plan.order.device)
    pair = plan.order[travelling].long()
    inverse = torch.full_like(plan.inverse, -1)
    inverse.view(-1)[pair] = torch.arange(pair.shape[0], dtype=torch.int32, device=pair.device)
    return Rows(pair, inverse)


def forward(
    opened: Session, tokens: Tokens, experts: Experts, waves: int | str = "auto", schedule: str = "waves"
) -> torch.Tensor:
    """The layer's output for this rank's tokens, ``bfloat16`` [T, hidden]; raises as :func:`travel`."""
    results, rows = travel(opened, tokens, experts, waves, schedule, Forward(tokens, experts))
    return local.combine(results.view(torch.float32), rows.inverse, experts.backend)


class Forward:
    """Tokens go to their experts and results come back."""

    number = 0

    def __init__(self, tokens: Tokens, experts: Experts) -> None:
        self._tokens, self._experts = tokens, experts
        self.row_bytes, self.result_bytes = dispatch_row(experts.hidden), result_row(experts.hidden)

    def check(self) -> None:
        check(self._tokens, self._experts)

    def tokens(self, session: Session) -> torch.Tensor:
        return quantized(session.engine.buffers, self._tokens.x, self._experts.backend)

    def compute(self, session: Session, measured: Measured) -> Compute:
        return _Compute(session, self._experts, measured)


def check(tokens: Tokens, experts: Experts) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless tokens and experts fit together."""
    x, topk_idx, topk_weight = tokens
    given = meta(x)
    assert given is not None
    local.check_experts(meta(experts.w1), meta(experts.w1_scale), meta(experts.w2), meta(experts.w2_scale), given)
    expect("x", given, (torch.bfloat16,), ("T", experts.hidden), x.device)
    expect("topk_idx", meta(topk_idx), (torch.int32,), (x.shape[0], "k"), x.device)
    expect("topk_weight", meta(topk_weight), (torch.float32,), tuple(topk_idx.shape), x.device)


def _weights(row: float, expert: float) -> tuple[float, float]:
    """By which waves are balanced; by rows alone until something was measured."""
    return (row, expert) if row or expert else (1.0, 0.0)


def _fields(experts: Experts, waves: int | str, schedule: str, direction: int) -> dict[str, int]:
    require_schedule(schedule)
    return {
        "hidden": experts.hidden,
        "inter": experts.inter,
        "experts per rank": experts.local,
        "swiglu_limit (its bits)": int(np.float64(local.clamp_limit(experts.limit)).view(np.int64)),
        "waves": wave_argument(waves),
        "schedule (its number)": SCHEDULES.index(schedule),
        "direction (0 forward, 1 backward)": direction,
    }


def _agree(
    session: Session,
    call: int,
    fields: dict[str, int],
    counts: Any,
    costs: tuple[float, float, float],
    problem: Exception | None,
    meanwhile: Callable[[], None],
) -> Agreement:
    """What all ranks know; ``meanwhile`` is done while their messages travel, unless this rank cannot go on."""
    engine = session.engine
    rates = (*costs, session.seconds_per_byte, session.latency)
    said = "" if problem is None else f"{type(problem).__name__}: {problem}"
    outcome: list[Agreement | PeerRefused] = []

    def exchange() -> None:
        try:
            outcome.append(session.agreeing.agree(call, fields, counts, rates, said))
        except PeerRefused as refused:
            outcome.append(refused)

    engine.perform(exchange, None if problem else meanwhile)
    if problem is not None:  # this rank's own reason comes first
        raise problem
    if isinstance(outcome[0], PeerRefused):
        raise outcome[0]
    return outcome[0]


def quantized(
    buffers: Buffers, x: torch.Tensor, backend: str | None, beside: torch.Tensor | None = None
) -> torch.Tensor:
    """Each token as its rows travel: MXFP8 elements, scales, four bytes for the weight; and then the token's row of
    ``beside``, uint8 [T, any multiple of 4]."""
    hidden = x.shape[1]
    head = dispatch_row(hidden)
    codes, scale = quantize_mxfp8(x, backend=backend)
    wide = buffers.take("tokens", x.shape[0], head + (0 if beside is None else beside.shape[1]))
    wide[:, :hidden] = codes.view(torch.uint8)
    wide[:, hidden : hidden + scale.shape[1]] = scale
    if beside is not None:
        wide[:, head:] = beside
    return wide


def _pack(buffers: Buffers, wide: torch.Tensor, topk_weight: torch.Tensor, rows: Rows, hidden: int) -> torch.Tensor:
    """This rank's rows as they travel: each its token's, and its weight."""
    packed = buffers.take("packed", rows.pair.shape[0], wide.shape[1])
    torch.index_select(wide, 0, rows.pair // max(topk_weight.shape[1], 1), out=packed)
    packed.view(torch.float32)[:, dispatch_row(hidden) // 4 - 1] = topk_weight.flatten()[rows.pair]
    return packed


class Unpacked(NamedTuple):
    """A wave's rows as the kernels want them."""

    x: torch.Tensor
    x_scale: torch.Tensor
    offsets: torch.Tensor
    weight: torch.Tensor


def unpack(buffers: Buffers, arrived: Arrived, hidden: int) -> Unpacked:
    """The rows that :func:`_pack` packed; valid until the next wave's are unpacked."""
    rows = arrived.rows
    count, scales, head = rows.shape[0], hidden // local.BLOCK, dispatch_row(hidden)
    x = buffers.take("x", count, hidden)
    x.copy_(rows[:, :hidden])
    scale = buffers.take("x scale", count, scales)
    scale.copy_(rows[:, hidden : hidden + scales])
    weight = buffers.take("weight", count, 4).view(torch.float32).view(-1)
    weight.copy_(rows.view(torch.float32)[:, head // 4 - 1])
    return Unpacked(x.view(torch.float8_e4m3fn), scale, arrived.offsets, weight)


class _Compute:
    """An expert's two products, each one kernel, on the rows of a wave."""

    def __init__(self, session: Session, experts: Experts, measured: Measured) -> None:
        self._buffers, self._experts, self._measured = session.engine.buffers, experts, measured
        self._on_cpu = session.engine.device.type == "cpu"

    def linear1(self, wave: int, arrived: Arrived) -> Any:
        experts, rows = self._experts, arrived.rows
        count = rows.shape[0]
        if count == 0:
            return None
        begin = time.perf_counter()
        operands = unpack(self._buffers, arrived, experts.hidden)
        weights = experts[:4]
        described = (meta(tensor) for tensor in (*operands, *weights))
        kernels = local.ffn_kernels(*described, local.clamp_limit(experts.limit), experts.backend, arrived.experts)
        assert kernels is not None
        h = rows.new_empty((count, experts.inter))
        h_scale = rows.new_empty((count, experts.inter // local.BLOCK))
        w1, w1_scale = (tensor.flatten(0, 1) for tensor in weights[:2])
        x, scale, offsets, weight = operands
        kernels.linear1(x, scale, w1, w1_scale, offsets, weight, h, h_scale)
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
