"""What accelerators do otherwise than CPUs, without one: batched messages, carried by gloo, and streams in a book."""

from __future__ import annotations

import contextlib
import importlib
import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist
from gloo_ranks import Ranks
from moe_data import HIDDEN, INTER, LIMIT, choices, layer
from moe_ranks import run_layer_in_batches
from thread_ranks import ThreadTransport, all_of, on_threads

from kernelforge.formats import bf16
from kernelforge.ops.mega_moe import reference
from kernelforge.ops.mega_moe.parallel import attempts
from kernelforge.ops.mega_moe.parallel.engine import Engine
from kernelforge.ops.mega_moe.parallel.errors import PeerLost
from kernelforge.ops.mega_moe.parallel.program import execute
from kernelforge.ops.mega_moe.parallel.streams import Streams
from kernelforge.ops.mega_moe.parallel.waves import WavePlan
from kernelforge.ops.mega_moe.schedule import SCHEDULES, program

EXPERTS, TOKENS, SLOTS = 8, 37, 3


@pytest.mark.parametrize("size", [2, 4])
def test_batched_messages_carry_the_same_bits(size):
    draw = np.random.default_rng(7)
    x = bf16.encode(draw.standard_normal((TOKENS, HIDDEN)).astype(np.float32))
    tokens = x, choices(draw, TOKENS, SLOTS, EXPERTS, dropped=0.1), draw.random((TOKENS, SLOTS)).astype(np.float32)
    weights = tuple(layer(np.random.default_rng(5), EXPERTS, HIDDEN, INTER))
    expected = reference.mega_moe(*tokens, weights, LIMIT)
    shares = [part.tolist() for part in np.array_split(np.arange(TOKENS), size)]
    cases = [(1, "serial"), (3, "two_stage"), (3, "waves"), ("auto", "waves")]
    with Ranks(size) as ranks:
        outcomes = ranks.call(run_layer_in_batches, weights, tokens, shares, LIMIT, cases)
    assert [rank for rank, _ in outcomes] == list(reversed(range(size)))
    for rank, outputs in outcomes:
        for case, output in zip(cases, outputs, strict=True):
            assert np.array_equal(output, expected[shares[rank]]), f"rank {rank}, {case}"


@pytest.mark.parametrize("transport", ["accelerator", "gloo"])
def test_an_attempt_that_makes_no_group_is_given_up(transport, monkeypatch):
    module = importlib.import_module(f"kernelforge.ops.mega_moe.parallel.{transport}")
    store = dist.HashStore()
    attempt = attempts.Attempt(0, 7, dist.PrefixStore("attempt 7", store), store)

    def fails(*given):
        raise RuntimeError("no group")

    monkeypatch.setattr(module, "join", lambda group, timeout: attempt)
    monkeypatch.setattr(module, "_connect", fails)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    make = module.AcceleratorTransport if transport == "accelerator" else module.GlooTransport
    where = [torch.device("cpu")] if transport == "accelerator" else []
    with pytest.raises(PeerLost):
        make(None, *where, 1.0)
    assert store.check([attempts._given_up(7)])


class Book:
    """A device module whose streams run nothing: it notes what each stream is ordered after."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._caller = self.Stream(None)
        self.tick = 0

    class Stream:
        def __init__(self, device) -> None:
            self.after: dict[str, int] = {}

        def wait_event(self, event) -> None:
            for what, when in event.after.items():
                self.after[what] = max(self.after.get(what, 0), when)

    class Event:
        def record(self, stream) -> None:
            self.after = dict(stream.after)

    def current_stream(self, device):
        return getattr(self._local, "stream", self._caller)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self._local.stream = self.current_stream(None), stream
        yield
        self._local.stream = before

    def write(self, what: str) -> None:
        """The current stream does ``what``."""
        self.tick += 1
        self.current_stream(None).after[what] = self.tick

    def saw(self, what: str) -> bool:
        """Whether the current stream is ordered after ``what``."""
        return what in self.current_stream(None).after


class Noting(ThreadTransport):
    """Notes on the current stream what is sent and received; a send must come after what it sends was written."""

    def __init__(self, inner: ThreadTransport, book: Book, missing: list[str]) -> None:
        super().__init__(inner.world, inner.rank, early=False)
        self.book, self.missing, self.given = book, missing, 0

    def post(self, channel, sends, receives):
        exchange, book = super().post(channel, sends, receives), self.book
        if channel == 2 and sends:
            if not book.saw(f"linear2 {self.given}"):
                self.missing.append(f"results of wave {self.given} were sent before they were there")
            self.given += 1
        received = exchange.received

        def noted(deadline):
            received(deadline)
            book.write(f"received {channel}")

        exchange.received = noted
        return exchange


class Products:
    def __init__(self, book: Book, missing: list[str]) -> None:
        self.book, self.missing = book, missing

    def linear1(self, wave, arrived):
        if not self.book.saw("received 1"):
            self.missing.append(f"wave {wave} was multiplied before it was received")
        return arrived.rows

    def linear2(self, wave, arrived, state):
        self.book.write(f"linear2 {wave}")
        return state[:, :4].clone()


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_streams_are_ordered_by_events(schedule, joined, monkeypatch):
    """Both ways: products after what they read came, messages after what they carry was made; and it is the joins."""
    if not joined:
        monkeypatch.setattr(Streams, "join", lambda self, event: None)

    def work(rank, transport):
        book, missing = Book(), []
        noting = Noting(transport, book, missing)
        engine = Engine(noting, torch.device("cpu"), timeout=20)
        engine.streams._module, engine.streams._communication = book, book.Stream(None)
        plan = WavePlan(np.full((2, 6), 2), rank, 1 if schedule == "serial" else 3)
        rows = torch.zeros((plan.rows, 8), dtype=torch.uint8)
        steps = program(schedule, plan.waves)
        with engine.call():
            execute(engine, steps, plan, 8, lambda: rows, Products(book, missing), 4)
        if not book.saw("received 2"):
            missing.append("results were handed out before they were received")
        engine.close()
        return missing

    for missing in all_of(on_threads(2, work)):
        assert bool(missing) != joined, missing
