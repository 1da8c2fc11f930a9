"""What a rank is told when a message does not come."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch

from kernelforge.ops.mega_moe.parallel.engine import Engine
from kernelforge.ops.mega_moe.parallel.errors import PeerLost
from kernelforge.ops.mega_moe.parallel.works import Works


class _Message:
    """A handle of torch.distributed for a message that never comes: waits whole milliseconds, as torch does."""

    def __init__(self, lives: bool) -> None:
        self._lives = lives

    def wait(self, timeout: timedelta) -> None:
        if self._lives:
            time.sleep(timeout // timedelta(milliseconds=1) / 1000)
            raise RuntimeError("Timed out waiting")
        raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.0004, 0.0207, 0.0209])
def test_a_rank_that_is_silent_until_the_deadline_did_not_answer(seconds):
    deadline = time.monotonic() + seconds
    with pytest.raises(PeerLost, match="rank 3 did not answer within"):
        Works([(3, _Message(lives=True))], []).received(deadline)
    assert time.monotonic() >= deadline


def test_a_connection_that_breaks_earlier_is_a_rank_that_is_gone():
    with pytest.raises(PeerLost, match="rank 3 is gone: Connection closed by peer"):
        Works([(3, _Message(lives=False))], []).received(time.monotonic() + 10)


class _Breaks:
    """A transport whose connection to rank 1 is broken; that rank says why soon after, or never."""

    rank, size, early = 0, 2, False

    def __init__(self, word: str) -> None:
        self._word = word

    def watch(self, told) -> None:
        self._told = told

    def post(self, channel, sends, receives):
        if self._word:
            threading.Timer(0.1, self._told, (1, self._word)).start()
        raise PeerLost("rank 1 is gone: reset", broken=1)

    def abort(self, reason: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("word", "said"), [("out of memory", "rank 1 gave up: out of memory"), ("", "rank 1 is gone: reset")]
)
def test_a_rank_that_gave_up_is_heard_behind_its_broken_connection(word, said):
    transport = _Breaks(word)
    engine = Engine(transport, torch.device("cpu"), timeout=20)
    with pytest.raises(PeerLost, match=said):
        engine.perform(lambda: transport.post(0, [], []))
