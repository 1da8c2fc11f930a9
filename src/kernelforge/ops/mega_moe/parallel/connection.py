"""Connections between the ranks of a group, apart from the group's own. All that is private in torch is touched here.

Ranks that lost each other must find each other again, though one may have tried more often than another. Rank 0 counts
the attempts in the group's store, and the others join its latest one that they have not been part of and that it has
not given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from .errors import PeerLost

_POLL = 0.005
_joined: dict[str, int] = {}
"""The latest attempt that this process was part of, by group."""


@dataclass
class Connection:
    """Process groups of our own.

    Attributes:
        up: carries messages to higher ranks.
        down: carries messages to lower ranks; another connection than ``up`` with gloo, whose thread polls a connection
            without sleeping while a message is being posted on it: what comes in must not meet what goes out.
        abort: ends it for this rank; from any thread.
        close: frees what is left.
    """

    up: Any
    down: Any
    abort: Callable[[], None]
    close: Callable[[], None]


def connect(group: dist.ProcessGroup, device: torch.device, timeout: float) -> Connection:
    """Connect the ranks of ``group`` anew; all must come.

    Raises:
        PeerLost: they did not come in time.
    """
    try:
        return (_connect_gloo if device.type == "cpu" else _connect_registered)(group, device, timeout)
    except (RuntimeError, TimeoutError) as error:
        size = dist.get_world_size(group)
        raise PeerLost(f"the {size} ranks did not all come within {timeout:g} s: {first_line(error)}") from error


def _connect_gloo(group: dist.ProcessGroup, device: torch.device, timeout: float) -> Connection:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    store = distributed_c10d.PrefixStore("kernelforge", distributed_c10d._get_process_group_store(group))
    attempt = _attempt(store, group.group_name, rank, timeout)
    given_up = _given_up(attempt)

    def give_up() -> None:
        if rank == 0:
            store.set(given_up, "1")

    try:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_default_device()]  # one thread for both
        options._timeout = timedelta(seconds=timeout)
        up, down = (
            dist.ProcessGroupGloo(distributed_c10d.PrefixStore(f"attempt {attempt} {way}", store), rank, size, options)
            for way in ("up", "down")
        )
    except RuntimeError:
        give_up()
        raise
    return Connection(up, down, give_up, lambda: None)


def _attempt(store: distributed_c10d.Store, name: str, rank: int, timeout: float) -> int:
    """The number of the attempt to be part of."""
    if rank == 0:
        return int(store.add("attempts", 1))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        latest = int(store.add("attempts", 0))
        if latest > _joined.get(name, 0) and not store.check([_given_up(latest)]):
            _joined[name] = latest
            return latest
        time.sleep(_POLL)
    raise TimeoutError("rank 0 did not come")


def _given_up(attempt: int) -> str:
    return f"given up {attempt}"


def _connect_registered(group: dist.ProcessGroup, device: torch.device, timeout: float) -> Connection:
    """A group of torch's own making: accelerators' backends come from plug-ins that only torch knows how to call."""
    made = dist.new_group(
        dist.get_process_group_ranks(group),
        timeout=timedelta(seconds=timeout),
        backend=dist.get_backend_config(group),
        use_local_synchronization=True,
    )
    backend = made._get_backend(device)
    return Connection(made, made, getattr(backend, "abort", lambda: None), lambda: dist.destroy_process_group(made))


def first_line(error: BaseException) -> str:
    """What an error says, without the stack that torch adds."""
    return (str(error).splitlines() or [type(error).__name__])[0]
