"""``waves="auto"``: what it measures, and that it takes more than one wave only where that pays."""

from __future__ import annotations

import threading
import time
import types

import numpy as np
import pytest
import torch
from thread_ranks import all_of, on_threads

from kernelforge.ops.mega_moe.parallel import measured as measured_module
from kernelforge.ops.mega_moe.parallel.headed import Link, ShapedTransport
from kernelforge.ops.mega_moe.parallel.measured import UNMEASURED_WAVES, Measured, _choose, choose_waves, measure_link
from kernelforge.ops.mega_moe.schedule import dispatch_row, result_row

SIZES = dispatch_row(4096), result_row(4096)


def _counts(rows: int, ranks: int = 2, local: int = 16) -> np.ndarray:
    return np.random.default_rng(0).multinomial(rows, np.full(ranks * local, 1 / (ranks * local)), ranks)


def test_costs_are_those_that_explain_the_waves():
    measured = Measured()
    assert measured.costs() == (0.0, 0.0, 0.0)
    random = np.random.default_rng(1)
    for _ in range(64):
        rows, touched = int(random.integers(1, 400)), int(random.integers(1, 16))
        measured.add(rows, touched, 2e-4 * rows + 3e-3 * touched + 5e-3)
    assert measured.costs() == pytest.approx((2e-4, 3e-3, 5e-3))


def test_what_messages_cost_is_part_of_a_waves_cost():
    measured = Measured()
    for rows in (1, 2, 3, 4):
        measured.add(rows, rows, 1e-3 * rows)
    for seconds in (1e-4, 3e-4, 2e-4, 9.0):  # once, another process was in the way
        measured.add_handling(seconds)
    assert measured.costs()[2] == pytest.approx(2.5e-4)


def test_empty_waves_teach_nothing():
    measured = Measured()
    measured.add(0, 0, 1.0)
    assert measured.costs() == (0.0, 0.0, 0.0)


def test_more_waves_where_there_is_more_to_hide():
    costs = 2e-4, 1e-3, 3e-4
    few, many = (choose_waves(_counts(rows), SIZES, costs, 1e-8, 2e-5) for rows in (6, 768))
    assert 1 < few <= 6
    assert few < many <= 16


def test_one_wave_where_messages_cost_more_than_they_hide():
    # 6 rows of 20 KB over a link of 1 GB/s: 0.1 ms to hide, of which each further wave costs more.
    assert choose_waves(_counts(6), SIZES, (2e-4, 1e-3, 3e-4), 1e-9, 2e-5) == 1
    assert choose_waves(_counts(6), SIZES, (2e-4, 1e-3, 0.0), 1e-9, 2e-5) > 1
    assert choose_waves(np.zeros((2, 32), int), SIZES, (2e-4, 1e-3, 3e-4), 1e-9, 2e-5) == 1
    assert choose_waves(_counts(6, ranks=1), SIZES, (2e-4, 1e-3, 0.0), 1e-9, 2e-5) == 1


def test_a_first_call_has_a_default():
    assert choose_waves(_counts(6), SIZES, (0.0, 0.0, 0.0), 1e-9, 2e-5) == UNMEASURED_WAVES
    assert choose_waves(_counts(6, local=2), SIZES, (0.0, 0.0, 0.0), 1e-9, 2e-5) == 2


def test_counts_that_differ_little_have_one_choice():
    """So that ranks, which agree on counts and rates, need not model each call anew."""
    counts = np.full((2, 32), 100)
    more = counts.copy()
    more[0, 5] += 1
    choose_waves(counts, SIZES, (2**-12, 2**-10, 2**-11), 2**-26, 2**-16)
    modelled = _choose.cache_info().misses
    choose_waves(more, SIZES, (1.01 * 2**-12, 2**-10, 2**-11), 1.01 * 2**-26, 2**-16)
    assert _choose.cache_info().misses == modelled


def test_bandwidth_and_latency_of_a_link_are_told_apart():
    def work(rank, transport):
        return measure_link(ShapedTransport(transport, Link(5e6, 0.01)), torch.device("cpu"), 20.0)

    for bandwidth, latency in all_of(on_threads(2, work)):
        assert bandwidth == pytest.approx(5e6, rel=0.1)
        assert 0.005 < latency < 0.03


def test_a_rank_that_begins_late_does_not_find_the_link_faster(monkeypatch):
    """Its peer's message is there by then, and tells nothing about the link."""
    calls = {0: 0, 1: 0}
    local = threading.local()

    def clock():
        calls[local.rank] += 1
        if local.rank == 0 and calls[0] % 2 == 1:  # a round begins
            time.sleep(0.02)
        return time.monotonic()

    def work(rank, transport):
        local.rank = rank
        return measure_link(ShapedTransport(transport, Link(5e6, 0.02)), torch.device("cpu"), 20.0)

    monkeypatch.setattr(measured_module, "time", types.SimpleNamespace(perf_counter=clock, monotonic=time.monotonic))
    for _, latency in all_of(on_threads(2, work)):
        assert latency >= 0.019
