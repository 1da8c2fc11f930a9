"""The schedule model: its programs, its clock against sums done by hand, its choice of waves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import kernelforge as kf
from kernelforge.ops.mega_moe.schedule import SCHEDULES, Loads, Rates, Step, dispatch_row, program, result_row, simulate


@pytest.mark.parametrize("waves", [1, 2, 3, 8])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_programs_do_everything_once_and_in_order(schedule, waves):
    steps = program(schedule, waves)
    pieces = 1 if schedule == "serial" else waves
    assert sorted(steps) == sorted(
        Step(action, wave) for action in ("dispatch", "linear1", "linear2", "give_back") for wave in range(pieces)
    )
    place = {step: i for i, step in enumerate(steps)}
    for wave in range(pieces):
        places = [place[Step(action, wave)] for action in ("dispatch", "linear1", "linear2", "give_back")]
        assert places == sorted(places)
        if wave >= 2:  # the buffers of the wave two before are free
            assert place[Step("dispatch", wave)] > place[Step("linear1", wave - 2)]


def _loads(waves: int, compute: float, out: float, back: float, ranks: int = 1, **more) -> Loads:
    share = np.ones((ranks, waves)) * compute / waves
    away = np.ones((waves, ranks, ranks)) if ranks == 1 else np.tile(1.0 - np.eye(ranks), (waves, 1, 1))
    away /= max(ranks - 1, 1)
    return Loads(share * 2 / 3, share / 3, away * out / waves, away * back / waves, 1.0, **more)


def test_serial_is_the_sum():
    loads = _loads(1, 6.0, 1.0, 4.0, latency=0.5, before=0.25, after=0.125)
    assert simulate(program("serial", 1), loads).seconds == pytest.approx(6 + 1 + 4 + 2 * 0.5 + 0.25 + 0.125)


def test_waves_hide_the_shorter_of_the_two():
    # Compute-bound: the first wave's tokens, all products, the last wave's results.
    assert simulate(program("waves", 4), _loads(4, 8.0, 1.0, 2.0)).seconds == pytest.approx(1 / 4 + 8 + 2 / 4)
    # Link-bound: the link never rests after the first wave was computed.
    seconds = simulate(program("waves", 4), _loads(4, 2.0, 2.0, 8.0)).seconds
    assert seconds == pytest.approx(10.0, abs=2.0 / 4)


def test_two_stages_hide_tokens_behind_the_first_product_and_results_behind_the_second():
    seconds = simulate(program("two_stage", 4), _loads(4, 6.0, 2.0, 8.0)).seconds
    # 4 of linear1 after the first quarter of tokens; then 2 of linear2, of which a quarter goes before any result.
    assert seconds == pytest.approx(2 / 4 + 4 + 2 / 4 + 8)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("waves", [1, 3])
def test_ranks_alike_take_the_time_of_one(schedule, waves):
    waves = 1 if schedule == "serial" else waves
    alone = simulate(program(schedule, waves), _loads(waves, 6.0, 2.0, 3.0, latency=0.1)).seconds
    together = simulate(program(schedule, waves), _loads(waves, 6.0, 2.0, 3.0, ranks=4, latency=0.1)).seconds
    assert together == pytest.approx(alone)


def test_the_slowest_rank_decides():
    loads = _loads(2, 4.0, 1.0, 1.0, ranks=2)
    loads.linear1[1] *= 5
    timeline = simulate(program("waves", 2), loads)
    busiest = loads.linear1[1].sum() + loads.linear2[1].sum()
    assert busiest < timeline.seconds < busiest + 2.0
    assert timeline.busy("compute", 1) == pytest.approx(busiest)


def test_ranks_share_processors():
    shared = _loads(1, 6.0, 1.0, 4.0, ranks=4, processors=2)
    assert simulate(program("serial", 1), shared).seconds == pytest.approx(12 + 1 + 4)
    assert shared.bound == pytest.approx((12 + 5) / 12)
    # One rank is done sooner, and its half of a processor goes to the others.
    shared.linear1[0], shared.linear2[0] = 0.0, 3.0
    assert simulate(program("serial", 1), shared).seconds == pytest.approx(1 + (3 + 3 * 6) / 2 + 4)
    own = _loads(1, 6.0, 1.0, 4.0, ranks=4, processors=4)
    assert simulate(program("serial", 1), own).seconds == pytest.approx(6 + 1 + 4)


def test_lanes_do_one_thing_at_a_time():
    timeline = simulate(program("waves", 5), _loads(5, 3.0, 2.0, 4.0, ranks=3, latency=0.2))
    for rank in range(3):
        for lane in ("compute", "link"):
            spans = sorted((s.start, s.end) for s in timeline.spans if (s.rank, s.lane) == (rank, lane))
            assert all(a[1] <= b[0] + 1e-12 for a, b in itertools.pairwise(spans))


SHAPE = {"tokens": 512, "topk": 6, "hidden": 4096, "inter": 2048, "experts": 256, "ranks": 8}


def test_equal_work_and_link_approach_twice_serial():
    row = 3 * 2 * 4096 * 2048 / 1e15
    bandwidth = (dispatch_row(4096) + result_row(4096)) * 7 / 8 / row
    found = kf.moe_schedule(**SHAPE, flops=1e15, bandwidth=bandwidth)
    assert found.bound == pytest.approx(2.0)
    assert 1.8 < found.speedup() < found.bound
    assert found.speedup("two_stage") > 1.25
    assert found.waves == 32


def test_cost_per_wave_limits_the_waves():
    quick = Rates(row_seconds=1e-7, expert_seconds=1e-6, bandwidth=1e11)
    slow = Rates(row_seconds=1e-7, expert_seconds=1e-6, bandwidth=1e11, wave_seconds=1e-4)
    few, many = (kf.moe_schedule(**SHAPE, rates=r).waves for r in (slow, quick))
    assert few < many
    assert kf.moe_schedule(**SHAPE, rates=slow).by_waves[few] == min(
        kf.moe_schedule(**SHAPE, rates=slow).by_waves.values()
    )


def test_nothing_to_do_takes_the_time_of_agreeing():
    rates = Rates(1e-7, 1e-6, 1e9, latency=1e-5, agree_seconds=2e-5)
    found = kf.moe_schedule(**{**SHAPE, "tokens": 0}, rates=rates)
    assert found.seconds() == pytest.approx(2e-5)
    assert found.waves == 1


def test_one_rank_sends_nothing():
    found = kf.moe_schedule(**{**SHAPE, "ranks": 1}, flops=1e15, bandwidth=1e9)
    assert found.timelines["waves"].busy("link") == 0
    assert found.bound == 1.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ranks": 3}, "multiple of ranks"),
        ({"topk": 0}, "topk: given 0"),
        ({"topk": 300}, "topk: given 300"),
        ({"tokens": -1}, "tokens: given -1"),
        ({"hidden": 100}, "multiples of 32"),
        ({"flops": None}, "flops, bandwidth"),
        ({"flops": 0.0}, "flops: given 0.0"),
        ({"bandwidth": -1.0}, "bandwidth: given -1.0"),
        ({"latency": float("nan")}, "latency: given nan"),
        ({"waves": 0}, "waves: given 0"),
    ],
)
def test_wrong_input_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        kf.moe_schedule(**{**SHAPE, "flops": 1e15, "bandwidth": 1e11, **changed})
