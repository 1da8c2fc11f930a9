"""Compiling in other processes: TileLang holds Python's lock while it lowers, so threads alone keep one core busy."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import backends
from .compile import KernelSpec, compile_kernel

_KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""For glibc in a process that compiles: keep what is freed. A simplifier's solver takes and frees megabytes hundreds of
times a kernel, and getting them from the kernel of the system anew was a sixth of the time of lowering."""


class Workers:
    """Processes that compile kernels, each started when it is first needed.

    Args:
        count: how many, at least one.
    """

    def __init__(self, count: int) -> None:
        self._idle: queue.LifoQueue[subprocess.Popen[str] | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)
        self._started: list[subprocess.Popen[str]] = []
        self._turn = threading.Lock()

    def compile(self, spec: KernelSpec, backend: str, arch: str, directory: Path) -> bool:
        """Compile a kernel into ``directory``; false, and the directory as it was, where a worker cannot."""
        request = {
            "builder": spec.builder,
            "parameters": dict(spec.parameters),
            "backend": backend,
            "arch": arch,
            "directory": str(directory),
        }
        worker = self._idle.get()
        try:
            line = json.dumps(request)
            if json.loads(line) != request:  # a parameter that JSON changes, such as a tuple
                return False
            worker = worker or self._start()
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
            done = answer == "compiled\n"
            if not answer:  # it died; without waiting, poll may not know yet
                worker.wait()
        except (OSError, TypeError, ValueError):
            done = False
        finally:
            self._idle.put(worker if worker is not None and worker.poll() is None else None)
        if not done:
            for path in directory.iterdir():
                path.unlink()
        return done

    def _start(self) -> subprocess.Popen[str]:
        # What can be imported here can be imported there.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        worker = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_KEEP_MEMORY, "PYTHONPATH": path},
            text=True,
        )
        with self._turn:
            self._started.append(worker)
        return worker

    def close(self) -> None:
        """End the processes."""
        for worker in self._started:
            with contextlib.suppress(OSError):
                worker.communicate()


_current: Workers | None = None


def current() -> Workers | None:
    """The processes that compile now, if :func:`compiling` said so."""
    return _current


@contextlib.contextmanager
def compiling(count: int) -> Iterator[None]:
    """Compile every kernel of this process in ``count`` others meanwhile; what they cannot do is done here.

    Kernels compile side by side where several threads ask for them.
    """
    global _current
    before, _current = _current, Workers(count)
    try:
        yield
    finally:
        workers, _current = _current, before
        workers.close()


def serve() -> None:
    """The other process: a request a line on standard input, ``compiled`` or ``failed`` for each on standard output.

    Why a kernel failed is found out by compiling it again where the error is wanted.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print is no answer
    for line in sys.stdin:
        try:
            _serve(json.loads(line))
        except Exception:
            print("failed", file=answers, flush=True)
        else:
            print("compiled", file=answers, flush=True)


def _serve(request: dict[str, Any]) -> None:
    spec = KernelSpec.of(request["builder"], **request["parameters"])
    compile_kernel(spec, backends.backend(request["backend"]), request["arch"], Path(request["directory"]))
