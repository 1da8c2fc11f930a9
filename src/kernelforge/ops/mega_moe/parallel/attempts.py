"""How ranks that lost each other find each other again, though one may have tried more often than another.

Rank 0 counts the attempts in the group's store; the others join its latest one that they have not been part of and that
it has not given up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import distributed_c10d

_POLL = 0.005
_joined: dict[str, int] = {}
"""The latest attempt that this process was part of, by group."""


@dataclass(frozen=True)
class Attempt:
    """One attempt to connect the ranks of a group.

    Attributes:
        rank: this one.
        number: the same on all ranks; no other attempt of the group has it.
        store: of this attempt alone.
    """

    rank: int
    number: int
    store: distributed_c10d.Store
    _all: distributed_c10d.Store

    def give_up(self) -> None:
        """Let no rank join this attempt any more."""
        if self.rank == 0:
            self._all.set(_given_up(self.number), "1")

    @contextlib.contextmanager
    def given_up_on_failure(self) -> Iterator[None]:
        """Give the attempt up where an error ends what is done with it."""
        try:
            yield
        except BaseException:
            self.give_up()
            raise


def join(group: dist.ProcessGroup, timeout: float) -> Attempt:
    """Be part of the ranks' next attempt.

    Raises:
        TimeoutError: rank 0 began none in time.
    """
    rank, name = dist.get_rank(group), group.group_name
    store = distributed_c10d.PrefixStore("kernelforge", distributed_c10d._get_process_group_store(group))
    number = int(store.add("attempts", 1)) if rank == 0 else _latest(store, name, timeout)
    return Attempt(rank, number, distributed_c10d.PrefixStore(f"attempt {number}", store), store)


def _latest(store: distributed_c10d.Store, name: str, timeout: float) -> int:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        latest = int(store.add("attempts", 0))
        if latest > _joined.get(name, 0) and not store.check([_given_up(latest)]):
            _joined[name] = latest
            return latest
        time.sleep(_POLL)
    raise TimeoutError("rank 0 did not come")


def _given_up(number: int) -> str:
    return f"given up {number}"
