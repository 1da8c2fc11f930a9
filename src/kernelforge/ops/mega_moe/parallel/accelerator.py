"""Messages by the backend of accelerators (NCCL, HCCL): batches on a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from .attempts import Attempt, join
from .errors import PeerLost
from .transport import TAG, Exchange, Message, Told
from .works import Handles, Works, first_line, never_came


class AcceleratorTransport:
    """A :class:`.transport.Transport` of torch.distributed's batched point-to-point messages, on a group of its own.

    No message blocks a thread: what a lost rank leaves behind ends by the backend's own timeout.

    Args:
        group: the ranks; all must come here.
        device: where the messages lie.
        timeout: seconds within which the ranks must have come, and after which the backend ends a wait.

    Raises:
        PeerLost: they did not come.
    """

    early = False

    def __init__(self, group: dist.ProcessGroup, device: torch.device, timeout: float) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._aborted = False
        try:
            self._attempt = join(group, timeout)
            with self._attempt.given_up_on_failure():
                self._group = _connect(group, self._attempt, timeout)
        except (RuntimeError, TimeoutError) as error:
            raise never_came(self.size, timeout, error) from error
        self._backend = self._group._get_backend(device)

    def watch(self, told: Told) -> None:
        """Nothing is told: nothing blocks a thread."""

    def post(self, channel: int, sends: Sequence[Message], receives: Sequence[Message]) -> Exchange:
        if self._aborted:
            raise PeerLost("this exchange was closed by an earlier error")
        operations = [
            dist.P2POp(what, m.data, group=self._group, group_peer=m.peer, tag=TAG + channel)
            for what, messages in ((dist.irecv, receives), (dist.isend, sends))
            for m in messages
        ]
        try:
            works: Handles = [(None, work) for work in dist.batch_isend_irecv(operations)]
        except (RuntimeError, ValueError) as error:
            raise PeerLost(f"rank {self.rank} could not send: {first_line(error)}") from error
        return Works(works, works)

    def abort(self, reason: str) -> None:
        if not self._aborted:
            self._aborted = True
            self._attempt.give_up()
            if (abort := getattr(self._backend, "abort", None)) is not None:
                abort()

    def close(self) -> None:
        if self._group in distributed_c10d._world.pg_map:  # else all groups were destroyed before
            dist.destroy_process_group(self._group)


def _connect(group: dist.ProcessGroup, attempt: Attempt, timeout: float) -> Any:
    """A group of the same ranks in the same order.

    It is made as torch makes one, since backends come from plug-ins that only torch knows how to call, but under a name
    and in a store that no other attempt has: ``new_group`` names groups of the same ranks alike, so that a second one
    would meet what the first left in the store, and sorts the ranks.
    """
    ranks = dist.get_process_group_ranks(group)
    with _not_split():
        made, _ = distributed_c10d._new_process_group_helper(
            len(ranks),
            attempt.rank,
            ranks,
            dist.get_backend_config(group),
            attempt.store,
            distributed_c10d.GroupName(f"kernelforge {group.group_name} {attempt.number}"),
            timeout=timedelta(seconds=timeout),
        )
    distributed_c10d._world.pg_group_ranks[made] = {rank: place for place, rank in enumerate(ranks)}
    return made


@contextlib.contextmanager
def _not_split() -> Iterator[None]:
    """Have a communicator made anew: to split the default group's, ranks outside the new group would have to come."""
    default = distributed_c10d._get_default_group()
    bound, default.bound_device_id = default.bound_device_id, None
    try:
        yield
    finally:
        default.bound_device_id = bound
