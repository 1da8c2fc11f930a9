"""Messages through symmetric memory: the protocol on ranks that are threads, and what torch must offer for it.

A lane is a thread here and a stream on a device. Nothing of this runs on a GPU.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict

import numpy as np
import pytest
import torch
from test_wave_engine import counts_of, exchange

from kernelforge.ops.mega_moe.parallel import symmetric, symmetric_cuda
from kernelforge.ops.mega_moe.parallel.engine import Engine
from kernelforge.ops.mega_moe.parallel.errors import PeerLost
from kernelforge.ops.mega_moe.parallel.headed import CheckedTransport
from kernelforge.ops.mega_moe.parallel.symmetric import SymmetricTransport
from kernelforge.ops.mega_moe.parallel.symmetric_cuda import Place, has_symmetric_memory, offered, reachable
from kernelforge.ops.mega_moe.parallel.transport import AGREE, DISPATCH, Message

CHUNK = 40
CPU = torch.device("cpu")


class Shared:
    """The memory and the signals of all ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = [torch.zeros(symmetric.share_bytes(size, CHUNK), dtype=torch.uint8) for _ in range(size)]
        self.changed = threading.Condition()
        self.raised: dict[tuple[int, int, int], bool] = defaultdict(bool)
        """By the rank at which it is raised, the one that raised it, and the channel."""


class Workspace:
    def __init__(self, shared: Shared, rank: int) -> None:
        self.shared, self.rank, self.size = shared, rank, shared.size

    def lane(self):
        return Lane()

    def memory(self, owner, begin, nbytes):
        assert begin + nbytes <= self.shared.memory[owner].numel()
        return self.shared.memory[owner][begin : begin + nbytes]

    def put(self, peer, channel):
        self._turn((peer, self.rank, channel), True)

    def take(self, peer, channel):
        self._turn((self.rank, peer, channel), False)

    def _turn(self, signal, to: bool) -> None:
        assert 0 <= signal[2] < symmetric.CHANNELS
        with self.shared.changed:
            assert self.shared.changed.wait_for(lambda: self.shared.raised[signal] is not to, 20), "a signal was lost"
            self.shared.raised[signal] = to
            self.shared.changed.notify_all()


class Lane:
    def __init__(self) -> None:
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self._work.get()()

    def do(self, work) -> None:
        self._work.put(work)

    def mark(self):
        moment = threading.Event()
        self._work.put(moment.set)
        return moment

    def join(self, moment, deadline) -> None:
        if not moment.wait(max(deadline - time.monotonic(), 0)):
            raise PeerLost("a rank did not answer")


def on_ranks(size: int, work) -> list:
    """``work(transport)`` on every rank at once."""
    shared, outcomes = Shared(size), [None] * size

    def one(rank: int) -> None:
        try:
            outcomes[rank] = work(SymmetricTransport(Workspace(shared, rank), CHUNK))
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank hangs"
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


@pytest.mark.parametrize("size", [2, 3, 4])
def test_messages_of_any_length_arrive_in_order(size):
    """Lengths around a chunk and a mailbox, and many mailboxes: senders wait for free slots."""
    lengths = [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 11 * CHUNK + 7]

    def content(source: int, target: int, number: int) -> torch.Tensor:
        length = lengths[(source + target + number) % len(lengths)]
        return (torch.arange(length) * (3 + source) + 7 * target + 13 * number).to(torch.uint8)

    def work(transport):
        rank, others = transport.rank, [peer for peer in range(size) if peer != transport.rank]
        pending = []
        for number in range(2 * len(lengths)):
            coming = {peer: torch.zeros_like(content(peer, rank, number)) for peer in others}
            sends = [Message(peer, content(rank, peer, number)) for peer in others]
            receives = [Message(peer, data) for peer, data in coming.items()]
            pending.append((transport.post((AGREE, DISPATCH)[number % 2], sends, receives), coming, number))
        for posted, coming, number in pending:
            posted.received(time.monotonic() + 30)
            posted.sent(time.monotonic() + 30)
            for peer, data in coming.items():
                assert torch.equal(data, content(peer, rank, number)), (peer, rank, number)
        return True

    assert all(on_ranks(size, work))


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("kind", ["some", "one expert", "empty rank", "none"])
@pytest.mark.parametrize("schedule", ["serial", "two_stage", "waves"])
def test_the_engine_runs_over_it(schedule, kind, checked):
    size, local = 3, 4
    counts = counts_of(size, size * local, 5, kind)

    def work(transport):
        engine = Engine(CheckedTransport(transport) if checked else transport, CPU, timeout=20)
        results = [exchange(engine, counts, schedule, 3)[0] for _ in range(3)]
        engine.close()
        return transport.rank, results

    for rank, results in on_ranks(size, work):
        for found in results:
            assert found[:, 1].tolist() == (100_000 * (rank + 1) + torch.arange(counts[rank].sum())).tolist()
            assert found[:, 0].tolist() == np.repeat(np.arange(size * local), counts[rank]).tolist()


def test_a_closed_exchange_takes_no_messages():
    transport = SymmetricTransport(Workspace(Shared(2), 0), CHUNK)
    transport.abort("broken")
    with pytest.raises(PeerLost, match="closed"):
        transport.post(AGREE, [], [])


@pytest.mark.parametrize("size", [2, 5])
def test_slots_fill_a_share_without_overlap(size):
    begins = sorted(
        symmetric.slot_begin(source, slot, CHUNK) for source in range(size) for slot in range(symmetric.SLOTS)
    )
    assert begins == list(range(0, symmetric.share_bytes(size, CHUNK), CHUNK))


def test_torch_has_what_the_transport_uses():
    assert has_symmetric_memory()


def test_an_older_torch_is_seen_to_have_none(monkeypatch):
    monkeypatch.setattr(symmetric_cuda, "WANTED", ("rendezvous", "what is not there"))
    assert not has_symmetric_memory()
    monkeypatch.setattr(symmetric_cuda, "MODULE", "torch.distributed._no_such_module")
    assert not has_symmetric_memory()


HERE = [Place("node", f"gpu {rank}", True) for rank in range(3)]


@pytest.mark.parametrize(
    ("places", "blocked", "wanted"),
    [
        (HERE, "", True),
        (HERE, "gpu 2", False),
        ([*HERE[:2], Place("other node", "gpu 2", True)], "", False),
        ([*HERE[:2], Place("node", "gpu 1", True)], "", False),
        ([*HERE[:2], Place("node", "gpu 2", False)], "", False),
    ],
    ids=["all", "no access", "two machines", "one device twice", "older torch"],
)
def test_devices_that_cannot_reach_each_other_are_seen(places, blocked, wanted):
    assert reachable(places, 0, lambda device: device != blocked) is wanted


def test_processors_have_none():
    assert not offered(None, CPU, 1.0)
