"""Ranks that are processes, joined by gloo. They start once and take many tasks; nothing waits without an end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
import traceback
from datetime import timedelta
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "kernelforge.ops.mega_moe.parallel.layer", "moe_ranks"])


class Ranks:
    """``size`` processes in one process group.

    Use as a context; :meth:`call` runs a function of a helper module on every rank.
    """

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        self.size, self.timeout = size, timeout
        self._store = tempfile.NamedTemporaryFile(delete=False)  # noqa: SIM115
        self._pipes, self.processes = [], []
        for rank in range(size):
            mine, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(rank, size, self._store.name, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self.processes.append(process)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join(5)
        os.unlink(self._store.name)

    def start(self, function: Any, *arguments: Any, ranks: Any = None) -> None:
        """Begin ``function(group, *arguments)`` on ranks (all of them by default)."""
        for rank in range(self.size) if ranks is None else ranks:
            self._pipes[rank].send((function, arguments))

    def finish(self, ranks: Any = None, timeout: float | None = None) -> list[Any]:
        """What each rank returned, or the exception it raised, or None where it died."""
        end = time.monotonic() + (timeout or self.timeout)
        outcomes: list[Any] = []
        for rank in range(self.size) if ranks is None else ranks:
            pipe = self._pipes[rank]
            assert pipe.poll(max(end - time.monotonic(), 0.01)), f"rank {rank} hangs"
            try:
                outcomes.append(pipe.recv())
            except (EOFError, ConnectionError):
                outcomes.append(None)
        return outcomes

    def call(self, function: Any, *arguments: Any) -> list[Any]:
        """Run on every rank; what each returned. An exception of any rank is raised here."""
        self.start(function, *arguments)
        outcomes = self.finish()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        alive = [process.is_alive() for process in self.processes]
        assert all(alive), f"ranks died: {alive}"
        return outcomes


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    while (task := pipe.recv()) is not None:
        function, arguments = task
        try:
            outcome = function(dist.group.WORLD, *arguments)
        except Exception as error:
            error.add_note(f"on rank {rank}:\n{traceback.format_exc()}")
            outcome = error
        pipe.send(outcome)
    os._exit(0)
