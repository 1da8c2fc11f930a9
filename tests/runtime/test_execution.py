"""How virtual devices execute is chosen by the environment or by a block of code."""

from __future__ import annotations

import re
import threading

import pytest

from kernelforge.backends import Execution, executing, execution
from kernelforge.conformance.runner import execution as of_case


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("late", Execution()),
        ("early", Execution("early")),
        ("random:12", Execution("random", 12)),
        ("random:12+unchecked", Execution("random", 12, check=False)),
    ],
)
def test_the_environment_chooses(monkeypatch, text, wanted):
    monkeypatch.setenv(execution.ENVIRONMENT, text)
    assert execution.current() == wanted


@pytest.mark.parametrize("text", ["", "fast", "random:x", "random:-1", "random:", "late+check", "late+"])
def test_what_means_nothing_is_refused_by_name(monkeypatch, text):
    monkeypatch.setenv(execution.ENVIRONMENT, text)
    with pytest.raises(ValueError, match=re.escape(f"{execution.ENVIRONMENT} is '{text}'")):
        execution.current()


def test_an_order_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'sometimes'"):
        Execution("sometimes")


def test_a_block_wins_over_the_environment_until_it_ends(monkeypatch):
    monkeypatch.setenv(execution.ENVIRONMENT, "early")
    with executing(Execution("random", 3)):
        assert execution.current() == Execution("random", 3)
    assert execution.current() == Execution("early")


def test_a_block_concerns_its_thread_alone(monkeypatch):
    monkeypatch.delenv(execution.ENVIRONMENT, raising=False)
    seen = []
    with executing(Execution("early", 5)):
        thread = threading.Thread(target=lambda: seen.append(execution.current()))
        thread.start()
        thread.join()
    assert seen == [Execution()]


def test_conformance_checks_every_case_and_takes_every_order():
    chosen = [of_case(3, i) for i in range(6)]
    assert all(one.check for one in chosen)
    assert {(one.order, one.preempt > 0) for one in chosen} == {(o, p) for o in execution.ORDERS for p in (False, True)}
    assert len({one.seed for one in chosen}) == len(chosen)
