"""What two processes race to do; a module, so that a spawned process can import it."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from kernelforge.runtime import Cache


def run(root: str, queue: multiprocessing.Queue) -> None:
    """Build entry ``k`` in half a second and say who did."""

    def build(directory: Path) -> None:
        queue.put(os.getpid())
        time.sleep(0.5)
        (directory / "kernel.so").write_bytes(b"code")

    Cache(Path(root)).entry("k", build)
