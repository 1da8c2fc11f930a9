"""The three schedules on ranks of this machine, over a link as slow as the products; and the model beside them.

    python -m kernelforge.ops.mega_moe.parallel.benchmark --ranks 2

Each rank is a process with one compute thread, joined by gloo. The link is limited (:class:`.headed.Link`) to the
bandwidth at which all messages take as long as all products, where overlap can gain most. More ranks than processors
share them; then products take as long as all ranks' together on the processors.

The model is given costs per row, expert and wave in seconds of the computing thread's own processor time, and how many
processors there are; from calls without a limit on the link it learns what a call takes beside products. It has seen
none of the calls that it predicts.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ....bench import Report, Row
from .. import local
from ..schedule import SCHEDULES, Loads, Span, dispatch_row, program, result_row, simulate
from ..schedule.model import LINEAR1_SHARE
from .headed import Link
from .layer import Experts, Forward, Tokens, forward, travel
from .measured import Measured
from .program import Arrived, Compute
from .session import Options, Session, close, configure, session
from .waves import WavePlan

HIDDEN, INTER, EXPERTS_PER_RANK, SLOTS = 4096, 2048, 16, 6
"""DeepSeek-V4-Flash's experts, 16 of them on a rank."""
WAVES = (2, 3, 4, 8, 16)
LATENCY = 20e-6
SMALL = 16
"""Tokens per rank."""
WARM = 3
"""Rounds before those that count: ``waves="auto"`` measures in them what it chooses by."""
CPU = torch.device("cpu")


class Measurement(NamedTuple):
    """What one rank found for one batch size; seconds.

    Attributes:
        tokens: per rank.
        compute_seconds: of all products, of the busiest rank or of all ranks on the processors.
        bound: what no overlap can gain more than, over serial.
        waves: the count that ``waves="auto"`` chose, and two_stage's, the model's best.
        measured, predicted: by schedule.
        spans: one call's.
    """

    tokens: int
    compute_seconds: float
    bound: float
    waves: dict[str, int]
    measured: dict[str, float]
    predicted: dict[str, float]
    spans: list[Span]


def counts_of(topk_idx: NDArray[np.int32], experts: int) -> NDArray[np.int64]:
    """Rows of each rank for each expert, [ranks, experts], of the ranks' choices [ranks, tokens, k]."""
    return np.stack([np.bincount(own.ravel(), minlength=experts) for own in topk_idx]).astype(np.int64)


def loads(counts: NDArray[np.int64], waves: int, costs: Sequence[float], link: Link, around: float = 0.0) -> Loads:
    """The work of each wave for these counts.

    Args:
        counts: [ranks, experts].
        waves: how many.
        costs: seconds per row, per expert with rows, per wave.
        link: out of each rank.
        around: seconds before the first step and after the last, together.
    """
    ranks = counts.shape[0]
    plans = [WavePlan(counts, rank, waves, costs[0], costs[1]) for rank in range(ranks)]
    compute = np.zeros((ranks, plans[0].waves))
    rows = np.zeros((plans[0].waves, ranks, ranks))
    for rank, plan in enumerate(plans):
        for wave in range(plan.waves):
            per_expert = np.diff(plan.offsets(wave))
            compute[rank, wave] = costs[0] * per_expert.sum() + costs[1] * (per_expert > 0).sum() + costs[2]
            for peer in range(ranks):
                going = plan.going(wave, peer)
                rows[wave, rank, peer] = (going.stop - going.start) * (peer != rank)
    return Loads(
        linear1=LINEAR1_SHARE * compute,
        linear2=(1 - LINEAR1_SHARE) * compute,
        dispatch=rows * dispatch_row(HIDDEN),
        give_back=rows.transpose(0, 2, 1) * result_row(HIDDEN),
        bandwidth=link.bandwidth,
        latency=link.latency,
        before=around / 2,
        after=around / 2,
        processors=float(os.cpu_count() or 1),
    )


class _Layer:
    """One rank's layer and tokens, and how long calls take."""

    def __init__(self, group: dist.ProcessGroup, tokens: int) -> None:
        self.group, self.tokens = group, tokens
        rank, size = group.rank(), group.size()
        draw = torch.Generator().manual_seed(rank)

        def codes(*shape: int) -> torch.Tensor:
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)

        def scales(*shape: int) -> torch.Tensor:
            return torch.full(shape, 120, dtype=torch.uint8)

        each = EXPERTS_PER_RANK
        self.experts = Experts(
            w1=codes(each, 2 * INTER, HIDDEN // 2),
            w1_scale=scales(each, 2 * INTER, HIDDEN // 32),
            w2=codes(each, HIDDEN, INTER // 2),
            w2_scale=scales(each, HIDDEN, INTER // 32),
            limit=10.0,
            backend=None,
        )
        random = np.random.default_rng(tokens)
        keys = random.random((size, tokens, EXPERTS_PER_RANK * size))
        topk_idx = np.argsort(keys, -1)[:, :, :SLOTS].astype(np.int32)
        self.counts = counts_of(topk_idx, EXPERTS_PER_RANK * size)
        self.operands = Tokens(
            torch.randn((tokens, HIDDEN), generator=draw).to(torch.bfloat16),
            torch.from_numpy(topk_idx[rank].copy()),
            torch.rand((tokens, SLOTS), generator=draw),
        )

    def session(self) -> Session:
        return session(self.group, CPU)

    def call(self, schedule: str, waves: int | str) -> tuple[float, list[Span]]:
        """Seconds of a call that all ranks begin together, of the slowest rank; and what this rank did when."""
        opened = self.session()
        opened.engine.trace = []
        if opened.shaped is not None:
            opened.shaped.log.clear()
        dist.barrier(self.group)
        begin = time.monotonic()
        forward(opened, self.operands, self.experts, waves, schedule)
        taken = torch.tensor([time.monotonic() - begin], dtype=torch.float64)
        dist.all_reduce(taken, dist.ReduceOp.MAX, self.group)
        spans = [s._replace(start=s.start - begin, end=s.end - begin) for s in opened.engine.trace]
        if opened.shaped is not None:
            names = {1: "dispatch", 2: "give_back"}
            spans += [
                Span(self.group.rank(), "link", names[channel], 0, start / 1e9 - begin, end / 1e9 - begin)
                for channel, start, end in opened.shaped.log
                if channel in names
            ]
        opened.engine.trace = None
        return float(taken[0]), spans

    def costs(self, rounds: int) -> list[float]:
        """Processor time of products per row, per expert with rows, per wave: the mean over ranks."""
        opened, passage = self.session(), _Counted(self.operands, self.experts)
        for _ in range(rounds):
            for waves in (1, *WAVES):
                dist.barrier(self.group)
                results, rows = travel(opened, self.operands, self.experts, waves, "waves", passage)
                local.combine(results.view(torch.float32), rows.inverse)
        return _mean(self.group, passage.counted.costs())


class _Counted(Forward):
    """A layer whose products are timed in processor time of the computing thread, which nothing else adds to."""

    def __init__(self, tokens: Tokens, experts: Experts) -> None:
        super().__init__(tokens, experts)
        self.counted = Measured()

    def compute(self, session: Session, measured: Measured) -> Compute:
        return _Counting(super().compute(session, measured), self.counted)


class _Counting:
    def __init__(self, inner: Compute, counted: Measured) -> None:
        self._inner, self._counted = inner, counted

    def linear1(self, wave: int, arrived: Arrived) -> Any:
        begin = time.thread_time()
        state = self._inner.linear1(wave, arrived)
        return state, time.thread_time() - begin

    def linear2(self, wave: int, arrived: Arrived, state: Any) -> torch.Tensor:
        begin = time.thread_time()
        result = self._inner.linear2(wave, arrived, state[0])
        self._counted.add(arrived.rows.shape[0], arrived.experts, state[1] + time.thread_time() - begin)
        return result


def _mean(group: dist.ProcessGroup, values: Sequence[float]) -> list[float]:
    """The mean over ranks."""
    shared = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(shared, dist.ReduceOp.SUM, group)
    found: list[float] = (shared / group.size()).tolist()
    return found


def _handling(layer: _Layer, costs: Sequence[float], rounds: int) -> tuple[float, float]:
    """What a call takes beside its products: for each wave (posting, sorting, waking a thread), and once; from calls
    over a link without limits. The time for a wave is a processor's."""
    free = Link(bandwidth=1e15)
    beside, cut = [], []
    for waves in (1, *WAVES):
        work = loads(layer.counts, waves, costs, free)
        taken = statistics.median(layer.call("waves", waves)[0] for _ in range(rounds))
        beside.append(taken - _modelled("waves", work))
        cut.append(work.waves)  # fewer than asked for, where few experts have rows
    for_each, once = np.polyfit(cut, beside, 1)
    sharing = max(1.0, layer.group.size() / loads(layer.counts, 1, costs, free).processors)
    for_each, once = _mean(layer.group, [for_each, once])
    return max(for_each, 0.0) / sharing, max(once, 0.0)


def _modelled(schedule: str, work: Loads) -> float:
    return simulate(program(schedule, work.waves), work).seconds


def measure(group: dist.ProcessGroup, tokens: int, rounds: int) -> Measurement:
    """Measure one batch size; all ranks must call. Small batches, which take little time, get more rounds."""
    rounds *= 4 if tokens <= SMALL else 1
    layer = _Layer(group, tokens)
    configure(group, Options(timeout=60.0))
    for waves in (1, *WAVES):  # kernels are compiled or loaded, buffers made
        layer.call("waves", waves)
    row, expert, wave = layer.costs(rounds)
    for_each, around = _handling(layer, (row, expert, wave), rounds)
    costs = row, expert, wave + for_each
    once = loads(layer.counts, 1, (row, expert, wave), Link(1.0))
    link = Link(once.link_seconds / once.shared_compute_seconds, LATENCY)

    def predict(schedule: str, waves: int) -> float:
        return _modelled(schedule, loads(layer.counts, waves, costs, link, around))

    configure(group, Options(timeout=60.0, link=link))
    halves = min(WAVES, key=lambda waves: predict("two_stage", waves))
    plan: dict[str, int | str] = {"serial": 1, "two_stage": halves, "waves": "auto"}
    times: dict[str, list[float]] = {schedule: [] for schedule in SCHEDULES}
    chosen: list[int] = []
    spans: list[Span] = []
    for turn in range(rounds + WARM):
        for schedule, asked in plan.items():
            seconds, spans = layer.call(schedule, asked)
            if turn >= WARM:
                times[schedule].append(seconds)
        chosen.append(1 + max(span.wave for span in spans))
    automatic = statistics.mode(chosen[WARM:])
    waves_of = {"serial": 1, "two_stage": halves, "waves": automatic}
    return Measurement(
        tokens,
        once.shared_compute_seconds,
        loads(layer.counts, 1, (row, expert, wave), link).bound,
        waves_of,
        {schedule: statistics.median(found) for schedule, found in times.items()},
        {schedule: predict(schedule, waves) for schedule, waves in waves_of.items()},
        spans,
    )


def _rank(rank: int, size: int, store: str, tokens: Sequence[int], rounds: int, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=120),
    )
    assert dist.group.WORLD is not None
    found = [measure(dist.group.WORLD, count, rounds) for count in tokens]
    if rank == 0:
        queue.put(found)
    dist.barrier()
    close(dist.group.WORLD)
    dist.destroy_process_group()


def measure_on_processes(size: int, tokens: Sequence[int], rounds: int, timeout: float = 600.0) -> list[Measurement]:
    """Start ``size`` ranks and measure every batch size.

    Raises:
        RuntimeError: a rank failed or took longer than ``timeout`` seconds.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        ranks = [context.Process(target=_rank, args=(r, size, store, tokens, rounds, queue)) for r in range(size)]
        for rank in ranks:
            rank.start()
        end = time.monotonic() + timeout
        try:
            while queue.empty():
                if time.monotonic() > end or any(rank.exitcode for rank in ranks):
                    raise RuntimeError("a rank failed or hangs; its error is above")
                time.sleep(0.1)
            found: list[Measurement] = queue.get()
            for rank in ranks:
                rank.join(30)
            return found
        finally:
            for rank in ranks:
                if rank.is_alive():
                    rank.kill()


def report(found: Sequence[Measurement], size: int, command: str) -> Report:
    """The measurements as a report."""
    made = Report(f"mega_moe_waves_{size}_ranks", command, "cpu")
    made.notes += [
        f"{size} gloo ranks on one machine of {os.cpu_count()} processors, one compute thread each; {EXPERTS_PER_RANK} "
        f"experts per rank of hidden {HIDDEN}, inter {INTER}; top-{SLOTS}, drawn evenly. The slowest rank's time; "
        "medians of interleaved rounds.",
        "The link out of each rank is limited so that the messages of the busiest take as long as all products: those "
        "of the busiest rank, or of all ranks together on the processors if that is longer.",
        'waves: the count that `waves="auto"` chose. two_stage has the count that the model finds best for it.',
        "bound: the sum of both over the larger; no overlap can gain more over serial.",
        "predicted: the schedule model, with costs from calls over a link without limits; error: predicted / measured "
        "- 1.",
    ]
    for one in found:
        values: dict[str, Any] = {"products ms": one.compute_seconds * 1e3, "waves": one.waves["waves"]}
        for schedule in SCHEDULES:
            values[f"{schedule} ms"] = one.measured[schedule] * 1e3
            values[f"{schedule} error %"] = 100 * (one.predicted[schedule] / one.measured[schedule] - 1)
        gain = one.measured["serial"] / one.measured["waves"]
        values |= {
            "waves x serial": gain,
            "waves x two_stage": one.measured["two_stage"] / one.measured["waves"],
            "bound x serial": one.bound,
            "% of bound": 100 * gain / one.bound,
        }
        made.rows.append(Row(f"{one.tokens} tokens per rank", values))
    return made


@click.command()
@click.option("--ranks", type=click.IntRange(min=2), default=2, show_default=True)
@click.option("--tokens", default="1,4,16,128", show_default=True, help="Tokens per rank, with commas between.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("benchmarks/results"))
def main(ranks: int, tokens: str, rounds: int, out: Path) -> None:
    """Measure serial, two-stage and wave schedules on ranks of this machine, and the model that predicts them."""
    sizes = [int(count) for count in tokens.split(",")]
    command = f"python -m {__spec__.name} --ranks {ranks} --tokens {tokens} --rounds {rounds}"
    made = report(measure_on_processes(ranks, sizes, rounds), ranks, command)
    print(made.markdown())
    made.write(out)


if __name__ == "__main__":
    main()
