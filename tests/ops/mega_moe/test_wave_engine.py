"""The wave engine on ranks that are threads: every row reaches its expert and comes back, whatever the schedule."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import all_of, on_threads

from kernelforge.ops.mega_moe.parallel.agree import EXPERTS, Agreeing
from kernelforge.ops.mega_moe.parallel.engine import Engine
from kernelforge.ops.mega_moe.parallel.errors import MoeCommunicationError, PayloadCorrupted, PeerLost, PeerRefused
from kernelforge.ops.mega_moe.parallel.headed import CheckedTransport, Link, ShapedTransport
from kernelforge.ops.mega_moe.parallel.program import execute
from kernelforge.ops.mega_moe.parallel.waves import WavePlan
from kernelforge.ops.mega_moe.schedule import SCHEDULES, program

CPU = torch.device("cpu")
ROW, RESULT = 12, 8


class Stamp:
    """An expert that answers with its number, the row's first 32-bit word, and its place in the expert's order."""

    def __init__(self, first_expert: int, fail_in: int = -1) -> None:
        self.first, self.fail_in, self.seen = first_expert, fail_in, {}

    def linear1(self, wave, arrived):
        if wave == self.fail_in:
            raise ArithmeticError("the expert broke")
        words = arrived.rows.view(torch.int32)[:, 0].clone()
        counts = torch.from_numpy(np.diff(arrived.offsets.numpy()))
        experts = torch.repeat_interleave(torch.arange(counts.numel()) + self.first, counts)
        for expert, word in zip(experts.tolist(), words.tolist(), strict=True):
            self.seen.setdefault(expert, []).append(word)
        return torch.stack([experts.int(), words], 1)

    def linear2(self, wave, arrived, state):
        return state.contiguous().view(torch.uint8)


def counts_of(size: int, experts: int, seed: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 7, (size, experts))
    if kind == "none":
        counts[:] = 0
    elif kind == "one expert":
        counts[:] = 0
        counts[:, experts // 2] = 9
    elif kind == "empty rank":
        counts[seed % size] = 0
    elif kind == "one source":
        counts[1:] = 0
    return counts


def rows_of(counts: np.ndarray, rank: int) -> torch.Tensor:
    rows = torch.zeros((int(counts[rank].sum()), ROW // 4), dtype=torch.int32)
    rows[:, 0] = 100_000 * (rank + 1) + torch.arange(rows.shape[0])
    return rows.view(torch.uint8).view(-1, ROW)


def exchange(engine: Engine, counts, schedule, waves, fail_in=-1):
    rank = engine.transport.rank
    plan = WavePlan(counts, rank, 1 if schedule == "serial" else waves)
    stamp = Stamp(rank * plan.local, fail_in)
    travelling = torch.from_numpy(plan.travelling)
    with engine.call():
        results = execute(
            engine, program(schedule, plan.waves), plan, ROW, lambda: rows_of(counts, rank)[travelling], stamp, RESULT
        )
    by_expert = torch.empty((plan.rows, RESULT // 4), dtype=torch.int32)
    by_expert[travelling] = results.view(torch.int32)
    return by_expert, stamp.seen


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 2, 4]),
    local=st.sampled_from([1, 2, 5]),
    schedule=st.sampled_from(SCHEDULES),
    waves=st.sampled_from([1, 2, 3, 8]),
    kind=st.sampled_from(["some", "none", "one expert", "empty rank", "one source"]),
    wrapped=st.booleans(),
    early=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_rows_reach_their_experts_in_token_order_and_return(size, local, schedule, waves, kind, wrapped, early, seed):
    counts = counts_of(size, size * local, seed, kind)

    def work(rank, transport):
        transport.early = early
        if wrapped:
            transport = CheckedTransport(ShapedTransport(transport, Link(1e8, 1e-4)))
        engine = Engine(transport, CPU, timeout=20)
        outcomes = [exchange(engine, counts, schedule, waves) for _ in range(2)]
        engine.close()
        return outcomes

    for rank, both in enumerate(all_of(on_threads(size, work))):
        for results, seen in both:
            assert results[:, 1].tolist() == (100_000 * (rank + 1) + torch.arange(counts[rank].sum())).tolist()
            assert results[:, 0].tolist() == np.repeat(np.arange(counts.shape[1]), counts[rank]).tolist()
            # An expert holds its rows by source rank, then in the source's order, whatever the waves.
            assert all(words == sorted(words) for words in seen.values())
            assert {e: len(words) for e, words in seen.items()} == {
                e: n for e, n in enumerate(counts.sum(0)) if n and e // local == rank
            }


def test_buffers_and_threads_do_not_grow():
    counts = counts_of(2, 4, 0, "some")

    def work(rank, transport):
        engine = Engine(transport, CPU, timeout=20)
        exchange(engine, counts, "waves", 2)
        held = engine.buffers.nbytes
        for _ in range(1000):
            exchange(engine, counts, "waves", 2)
        assert engine.buffers.nbytes == held
        engine.close()
        return len(transport.world.boxes)

    assert all_of(on_threads(2, work)) == [4, 4]
    assert _threads_end()


def _threads_end() -> bool:
    """The communication threads of engines that are closed or dropped end soon."""
    for _ in range(200):
        if not any(thread.name.startswith("kernelforge-moe") for thread in threading.enumerate()):
            return True
        time.sleep(0.02)
    return False


def test_an_engine_that_nobody_holds_ends_its_thread():
    def work(rank, transport):
        engine = Engine(transport, CPU, timeout=20)
        exchange(engine, counts_of(1, 2, 0, "some"), "waves", 2)
        del engine
        gc.collect()

    all_of(on_threads(1, work))
    assert _threads_end()


@pytest.mark.parametrize("fail_in", [0, 2])
def test_an_expert_that_fails_ends_the_call_on_every_rank(fail_in):
    counts = counts_of(3, 12, 1, "some") + 1

    def work(rank, transport):
        engine = Engine(transport, CPU, timeout=20)
        with pytest.raises(ArithmeticError if rank == 1 else PeerLost):
            exchange(engine, counts, "waves", 4, fail_in if rank == 1 else -1)
        with pytest.raises(PeerLost, match="closed") as later:
            exchange(engine, counts, "waves", 4)
        return str(later.value)

    begun = time.monotonic()
    told = all_of(on_threads(3, work))
    assert "the expert broke" in told[1]
    assert time.monotonic() - begun < 10


def test_a_rank_that_never_arrives_is_named_within_the_timeout():
    counts = counts_of(3, 6, 1, "some") + 1

    def work(rank, transport):
        if rank == 2:
            return None
        begun = time.monotonic()
        with pytest.raises(PeerLost):
            exchange(Engine(transport, CPU, timeout=0.5), counts, "waves", 2)
        return time.monotonic() - begun

    assert max(all_of(on_threads(3, work))[:2]) < 3


class Tampering:
    """Flips a bit of one received payload."""

    def __init__(self, inner, channel, number):
        self.inner, self.rank, self.size, self.early = inner, inner.rank, inner.size, inner.early
        self.channel, self.left = channel, number

    def post(self, channel, sends, receives):
        exchange = self.inner.post(channel, sends, receives)
        if channel == self.channel and receives:
            self.left -= 1
            if self.left == 0:
                received = exchange.received

                def tampered(deadline):
                    received(deadline)
                    receives[0].data[3] ^= 4

                exchange.received = tampered
        return exchange

    def watch(self, told):
        self.inner.watch(told)

    def abort(self, reason):
        self.inner.abort(reason)

    def close(self):
        self.inner.close()


@pytest.mark.parametrize(("channel", "number"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_a_corrupted_payload_is_found_and_ends_the_call(channel, number):
    counts = counts_of(2, 8, 1, "some") + 1

    def work(rank, transport):
        if rank == 0:
            transport = Tampering(transport, channel, number)
        exchange(Engine(CheckedTransport(transport), CPU, timeout=20), counts, "waves", 4)

    begun = time.monotonic()
    outcomes = on_threads(2, work)
    assert isinstance(outcomes[0], PayloadCorrupted)
    assert "from rank 1" in str(outcomes[0])
    # The other rank is told, unless it had everything already.
    assert outcomes[1] is None or isinstance(outcomes[1], PeerLost)
    assert time.monotonic() - begun < 10


def _agree(agreeing, call=1, problem="", rates=(1.0,), counts=(1, 2), **fields):
    if not isinstance(agreeing, Agreeing):
        agreeing = Agreeing(agreeing, CPU, 20)
    return agreeing.agree(call, fields, np.asarray(counts), rates, problem)


def test_agreeing_gathers_counts_and_the_slowest_rates():
    outcomes = all_of(
        on_threads(3, lambda r, t: _agree(t, counts=(r, 5), rates=(float(r), 2.0 - r), hidden=64, waves=3))
    )
    for counts, rates in outcomes:
        assert counts.tolist() == [[0, 5], [1, 5], [2, 5]]
        assert rates == (2.0, 2.0)


@pytest.mark.parametrize("early", [False, True])
def test_agreeing_on_more_experts_than_one_message_holds(early):
    experts = 2 * EXPERTS + 3

    def work(rank, transport):
        transport.early = early
        agreeing = Agreeing(transport, CPU, 20)
        calls = [_agree(agreeing, call, counts=rank + call * np.arange(experts)).counts for call in (1, 2)]
        return [*calls, _agree(agreeing, 3).counts]

    for calls in all_of(on_threads(2, work)):
        for call, counts in enumerate(calls[:2], 1):
            assert np.array_equal(counts, [rank + call * np.arange(experts) for rank in range(2)])
        assert calls[2].tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize("early", [False, True])
def test_a_rank_that_refuses_is_heard_and_the_group_goes_on(early):
    def work(rank, transport):
        transport.early = early
        agreeing = Agreeing(transport, CPU, 20)
        try:
            _agree(agreeing, problem="topk_idx: 99 is no expert" if rank == 1 else "")
            told = ""
        except PeerRefused as error:
            told = str(error)
        _agree(agreeing, call=2)
        return told

    told = all_of(on_threads(3, work))
    assert told[0] == told[2] == "rank 1 refused this call: topk_idx: 99 is no expert"
    assert told[1] == ""


def test_ranks_that_are_called_differently_refuse():
    outcomes = on_threads(2, lambda r, t: _agree(t, hidden=64 + 32 * r))
    assert [str(o) for o in outcomes] == [
        f"hidden: {64 + 32 * r} on rank {r}, {96 - 32 * r} on rank {1 - r}; all ranks must be called alike"
        for r in range(2)
    ]
    assert all(isinstance(o, PeerRefused) for o in outcomes)


def test_ranks_at_different_calls_are_told():
    outcomes = on_threads(2, lambda r, t: _agree(t, call=r))
    assert all(isinstance(o, MoeCommunicationError) for o in outcomes)


def test_a_shaped_link_takes_the_time_it_should():
    nbytes, link = 100_000, Link(bandwidth=1e6, latency=0.02)

    def work(rank, transport):
        engine = Engine(ShapedTransport(transport, link), CPU, timeout=20)
        counts = np.full((2, 2), nbytes // ROW)
        begun = time.monotonic()
        exchange(engine, counts, "serial", 1)
        return time.monotonic() - begun

    # Tokens one way, then results: 12 and 8 bytes a row.
    least = nbytes * (1 + RESULT / ROW) / 1e6 + 2 * 0.02
    for seconds in all_of(on_threads(2, work)):
        assert least - 0.001 < seconds < 2 * least


def test_waves_hold_about_equal_costs_and_every_expert_once():
    random = np.random.default_rng(0)
    for _ in range(100):
        counts = random.integers(0, 50, (2, 24)) * (random.random((2, 24)) < 0.7)
        plans = [WavePlan(counts, rank, 4) for rank in range(2)]
        for rank, plan in enumerate(plans):
            assert plans[1 - rank]._cuts[rank].tolist() == plan._cuts[rank].tolist()
            sizes = [int(plan.offsets(wave)[-1]) for wave in range(4)]
            mine = counts[:, 12 * rank : 12 * (rank + 1)].sum(0)
            assert sum(sizes) == mine.sum() == plan.hosted
            assert max(sizes) <= mine.sum() / 4 + mine.max()
            assert sorted(plan.travelling) == list(range(counts[rank].sum()))


def test_experts_that_others_wait_for_come_first():
    counts = np.array([[0, 2, 1, 0, 3, 0], [4, 0, 1, 0, 3, 2]])  # rank 0 has experts 0 to 2, rank 1 has 3 to 5
    plans = [WavePlan(counts, rank, 3) for rank in range(2)]
    assert [np.diff(plans[0].offsets(wave)).tolist() for wave in range(3)] == [[4, 0, 0], [0, 0, 2], [0, 2, 0]]
    # Rank 1 has rows for two experts only.
    assert [np.diff(plans[1].offsets(wave)).tolist() for wave in range(3)] == [[0, 6, 0], [0, 0, 2], [0, 0, 0]]
    assert plans[0].travelling.tolist() == [2, 0, 1, 3, 4, 5]  # expert 2, expert 1; then rank 1's expert 4
