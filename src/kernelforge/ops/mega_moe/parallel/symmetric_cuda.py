"""Symmetric memory of CUDA devices, where torch offers it. All of torch's symmetric memory is touched here."""

from __future__ import annotations

import importlib
import json
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from .symmetric import share_bytes
from .works import never_came

MODULE = "torch.distributed._symmetric_memory"
WANTED = ("empty", "rendezvous")
WANTED_OF_HANDLE = ("get_buffer", "put_signal", "wait_signal")


class Place(NamedTuple):
    """Where a rank's memory lies.

    Attributes:
        machine: the host's name.
        device: the device's UUID.
        able: whether torch and the device have symmetric memory.
    """

    machine: str
    device: str
    able: bool


def has_symmetric_memory() -> bool:
    """Whether this torch has what is used here."""
    try:
        module = importlib.import_module(MODULE)
        handle = module._SymmetricMemory
    except (ImportError, AttributeError):
        return False
    return all(hasattr(module, name) for name in WANTED) and all(hasattr(handle, name) for name in WANTED_OF_HANDLE)


def reachable(places: Sequence[Place], rank: int, can_access: Callable[[str], bool]) -> bool:
    """Whether a rank can write into all others' memory: one machine, a device each, all of them accessible.

    Args:
        places: of all ranks.
        rank: which one asks.
        can_access: whether its device can access the memory of the one with a UUID.
    """
    own = places[rank]
    return all(
        place.able and place.machine == own.machine and (peer == rank or can_access(place.device))
        for peer, place in enumerate(places)
    ) and len({place.device for place in places}) == len(places)


def offered(group: dist.ProcessGroup, device: torch.device, timeout: float) -> bool:
    """Whether all ranks can use symmetric memory; the same on all of them, who must all ask.

    Raises:
        PeerLost: a rank did not come in time.
    """
    if device.type != "cuda" or torch.version.cuda is None or dist.get_world_size(group) == 1:
        return False
    by_uuid = {str(torch.cuda.get_device_properties(i).uuid): i for i in range(torch.cuda.device_count())}
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = str(torch.cuda.get_device_properties(index).uuid)

    def can_access(other: str) -> bool:
        return other in by_uuid and torch.cuda.can_device_access_peer(index, by_uuid[other])

    mine = Place(socket.gethostname(), uuid, has_symmetric_memory())
    places = [Place(*place) for place in _share(group, "place", list(mine), timeout)]
    found = reachable(places, dist.get_rank(group), can_access)
    return all(_share(group, "reachable", found, timeout))


def _share(group: dist.ProcessGroup, name: str, value: Any, timeout: float) -> list[Any]:
    """Every rank's value. It is the same at every call, so it does no harm that keys are used again."""
    store = distributed_c10d.PrefixStore(
        f"kernelforge symmetric {name}", distributed_c10d._get_process_group_store(group)
    )
    keys = [str(rank) for rank in range(dist.get_world_size(group))]
    store.set(keys[dist.get_rank(group)], json.dumps(value))
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except RuntimeError as error:
        raise never_came(len(keys), timeout, error) from error
    return [json.loads(store.get(key)) for key in keys]


class CudaWorkspace:
    """A :class:`.symmetric.Workspace` of CUDA devices that can access each other's memory.

    Args:
        group: the ranks; all must come here.
        device: of this rank.
        timeout: seconds that a wait for a signal may take; then the device reports an error.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._device, self._milliseconds = device, round(timeout * 1000)
        module = importlib.import_module(MODULE)
        with torch.cuda.device(device):
            self._share = module.empty(share_bytes(self.size), dtype=torch.uint8, device=device)
            self._handle = module.rendezvous(self._share, group)

    def lane(self) -> CudaLane:
        return CudaLane(self._device)

    def memory(self, owner: int, begin: int, nbytes: int) -> torch.Tensor:
        found: torch.Tensor = self._handle.get_buffer(owner, (nbytes,), torch.uint8, begin)
        return found

    def put(self, peer: int, channel: int) -> None:
        self._handle.put_signal(peer, channel, self._milliseconds)

    def take(self, peer: int, channel: int) -> None:
        self._handle.wait_signal(peer, channel, self._milliseconds)


class CudaLane:
    """A stream as a :class:`.symmetric.Lane`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def do(self, work: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def join(self, moment: torch.cuda.Event, deadline: float) -> None:
        torch.cuda.current_stream(self._device).wait_event(moment)
