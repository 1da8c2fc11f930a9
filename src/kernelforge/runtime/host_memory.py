"""Memory for large CPU results, kept for the next call.

The system hands out fresh memory as pages that it clears one by one while they are first written: for a kernel that
only moves bytes, more work than the kernel's own. So results of 8 MiB and more lie in blocks of 2 MiB pages, and a
block whose tensor has died waits in a pool for the next result, as freed memory does in torch's allocator for
accelerators.

The pool holds at most ``$KERNELFORGE_HOST_CACHE_MIB`` MiB (by default a sixteenth of the machine's memory, at most
1024; 0 switches it off), and the system may take waiting pages away whenever memory is short.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

HUGE_PAGE = 2 << 20
SMALLEST = 4 * HUGE_PAGE
"""Results below this size are torch's own memory."""
ENVIRONMENT = "KERNELFORGE_HOST_CACHE_MIB"
_LARGEST_DEFAULT = 1024 << 20
_MADV_FREE = getattr(mmap, "MADV_FREE", None)


class _Block(NamedTuple):
    """Anonymous memory and the part of it that starts and ends with a large page."""

    memory: mmap.mmap
    first: int
    size: int


def default_limit() -> int:
    """Bytes that the pool holds unless told otherwise.

    Raises:
        ValueError: the environment variable is not a number.
    """
    wanted = os.environ.get(ENVIRONMENT, "").strip()
    if wanted:
        if not wanted.isdigit():
            raise ValueError(f"{ENVIRONMENT}: given {wanted!r}, wanted a number of MiB, 0 to keep nothing")
        return int(wanted) << 20
    if not sys.platform.startswith("linux"):
        return 0
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16, _LARGEST_DEFAULT)


class HostMemory:
    """A pool of blocks. Any thread may take a block, and the last reference to a tensor may die on any thread.

    Args:
        limit: bytes that may wait; 0 for none, so that every block is fresh.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._free: list[_Block] = []  # the longest waiting first
        # Blocks come back while any code runs, that under the lock included, so they queue up before it.
        self._returned: deque[_Block] = deque()

    @property
    def limit(self) -> int:
        """Bytes that may wait."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ValueError(f"limit: given {limit!r}, wanted a number of bytes, 0 to keep nothing")
        self._limit = limit
        with self._lock:
            self._trim()
        self._settle()

    @property
    def waiting(self) -> int:
        """Bytes that wait for a next use."""
        self._settle()
        with self._lock:
            return sum(block.size for block in self._free)

    def release(self) -> None:
        """Give every waiting block back to the system."""
        self._settle()
        with self._lock:
            self._free.clear()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized CPU tensor, contiguous. Its memory cannot be resized in place.

        Below :data:`SMALLEST` and where the system refuses, it is torch's own memory.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST or not sys.platform.startswith("linux"):
            return torch.empty(tuple(shape), dtype=dtype)
        try:
            block = self._take(nbytes)
        except (OSError, OverflowError, MemoryError):
            self.release()
            return torch.empty(tuple(shape), dtype=dtype)
        view = memoryview(block.memory)[block.first : block.first + nbytes]
        # The tensor's storage keeps the view alive, and nothing else does.
        weakref.finalize(view, self._give_back, block).atexit = False
        storage = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
        strides = torch.empty(tuple(shape), device="meta").stride()
        return torch.empty(0, dtype=dtype).set_(storage, 0, tuple(shape), strides)

    def _take(self, nbytes: int) -> _Block:
        size = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
        with self._lock:
            for index in reversed(range(len(self._free))):
                if size <= self._free[index].size <= size + size // 4:
                    return self._free.pop(index)
        memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with memoryview(memory) as whole:
            first = -torch.frombuffer(whole, dtype=torch.uint8).data_ptr() % HUGE_PAGE
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE, first, size)
        return _Block(memory, first, size)

    def _give_back(self, block: _Block) -> None:
        self._returned.append(block)
        self._settle()

    def _settle(self) -> None:
        """Move what came back into the pool. Whoever holds the lock does so for those who do not get it."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                while self._returned:
                    block = self._returned.popleft()
                    if self._limit >= block.size and _MADV_FREE is not None:
                        block.memory.madvise(_MADV_FREE, block.first, block.size)
                    self._free.append(block)
                self._trim()
            finally:
                self._lock.release()

    def _trim(self) -> None:
        while self._free and sum(block.size for block in self._free) > self._limit:
            del self._free[0]

    def _after_fork(self) -> None:
        self._lock = threading.Lock()


shared = HostMemory(default_limit())
"""The pool of every op's results."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared._after_fork)


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """As ``torch.empty_like`` of a contiguous tensor; on the CPU from the pool."""
    return new_empty(tensor, tensor.shape)


def new_empty(tensor: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
    """As ``tensor.new_empty``; on the CPU from the pool."""
    if tensor.device.type != "cpu":
        return tensor.new_empty(tuple(shape), dtype=dtype)
    return shared.empty(shape, dtype or tensor.dtype)
