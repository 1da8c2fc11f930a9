"""Ranks that are threads of this process, with a transport of shared memory: the engine's tests without processes.

A message is copied when its receiver takes it, not when it is posted, so overwriting a buffer too early shows.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque

import torch

from kernelforge.ops.mega_moe.parallel.errors import PeerLost


class World:
    """What the ranks share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.boxes: dict[tuple[int, int, int], deque] = defaultdict(deque)
        self.aborted: set[int] = set()

    def transport(self, rank: int) -> ThreadTransport:
        return ThreadTransport(self, rank)


class ThreadTransport:
    def __init__(self, world: World, rank: int, early: bool = True) -> None:
        self.world, self.rank, self.size, self.early = world, rank, world.size, early

    def post(self, channel, sends, receives):
        if self.rank in self.world.aborted:
            raise PeerLost("aborted")
        taken = []
        with self.world.changed:
            for message in sends:
                assert message.data.numel()
                box = [message.data, False]
                taken.append((message.peer, box))
                self.world.boxes[self.rank, message.peer, channel].append(box)
            self.world.changed.notify_all()
        return _Exchange(self.world, self.rank, channel, taken, receives)

    def watch(self, told):
        pass  # who waits for a rank that left is woken

    def abort(self, reason):
        with self.world.changed:
            self.world.aborted.add(self.rank)
            self.world.changed.notify_all()

    def close(self):
        self.abort("")


class _Exchange:
    def __init__(self, world, rank, channel, taken, receives):
        self.world, self.rank, self.channel, self.taken, self.receives = world, rank, channel, taken, receives

    def received(self, deadline):
        for message in self.receives:
            queue = self.world.boxes[message.peer, self.rank, self.channel]
            self._wait(lambda queue=queue: queue, message.peer, deadline)
            data, _ = box = queue.popleft()
            assert data.numel() == message.data.numel(), "the two sides disagree about a message's size"
            message.data.copy_(data)
            with self.world.changed:
                box[1] = True
                self.world.changed.notify_all()

    def sent(self, deadline):
        for peer, box in self.taken:
            self._wait(lambda box=box: box[1], peer, deadline)

    def _wait(self, condition, peer, deadline):
        def lost():
            gone = self.world.aborted
            return self.rank in gone or peer in gone

        with self.world.changed:
            self.world.changed.wait_for(lambda: condition() or lost(), max(deadline - time.monotonic(), 0))
            if not condition():
                raise PeerLost(f"rank {peer} {'left' if lost() else 'did not answer'}")


def on_threads(size: int, work, timeout: float = 60.0) -> list:
    """``work(rank, transport)`` on every rank at once; what each returned, or the exception that it raised."""
    world, outcomes = World(size), [None] * size
    threads = torch.get_num_threads()

    def one(rank):
        try:
            outcomes[rank] = work(rank, world.transport(rank))
        except Exception as error:
            outcomes[rank] = error

    running = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout)
        assert not thread.is_alive(), "a rank hangs"
    torch.set_num_threads(threads)
    return outcomes


def all_of(outcomes: list) -> list:
    """The outcomes, when no rank failed."""
    failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for error in sorted(failed, key=lambda error: isinstance(error, PeerLost)):
        raise error  # the cause before what followed from it
    return outcomes
