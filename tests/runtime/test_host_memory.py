"""The pool of large results: blocks are used again, held within the limit, and given back when asked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import kernelforge as kf
from kernelforge.runtime import host_memory
from kernelforge.runtime.host_memory import HUGE_PAGE, SMALLEST, HostMemory

LARGE = (SMALLEST // 2 + 16,)
BLOCK = SMALLEST + HUGE_PAGE
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the pool is Linux's")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8, torch.float8_e4m3fn])
def test_a_result_is_an_ordinary_tensor(dtype: torch.dtype) -> None:
    tensor = HostMemory(1 << 30).empty((3, SMALLEST // 4, 2), dtype)
    assert (tensor.shape, tensor.dtype, tensor.device.type) == ((3, SMALLEST // 4, 2), dtype, "cpu")
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % HUGE_PAGE == 0
    assert not tensor._is_view()
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    ones = torch.ones(tensor.shape).to(dtype)
    tensor.copy_(ones)
    assert torch.equal(tensor.view(torch.uint8), ones.view(torch.uint8))


def test_small_results_are_torch_s_own() -> None:
    pool = HostMemory(1 << 30)
    pool.empty((SMALLEST - 1,), torch.uint8)
    pool.empty((0, 5), torch.float32)
    assert pool.waiting == 0


def test_a_block_is_used_again_once_nothing_of_its_tensor_lives() -> None:
    pool = HostMemory(1 << 30)
    first = pool.empty(LARGE, torch.bfloat16)
    view, where = first[5:], first.data_ptr()
    del first
    assert pool.waiting == 0
    second = pool.empty(LARGE, torch.bfloat16)
    assert second.data_ptr() != where
    del view
    assert pool.waiting == BLOCK
    third = pool.empty(LARGE, torch.bfloat16)
    assert third.data_ptr() == where
    assert pool.waiting == 0


def test_a_block_far_too_large_is_left_for_another() -> None:
    pool = HostMemory(1 << 30)
    pool.empty((4 * SMALLEST,), torch.uint8)
    waiting = pool.waiting
    kept = pool.empty((SMALLEST,), torch.uint8)
    assert waiting == pool.waiting == 4 * SMALLEST
    assert kept.nbytes == SMALLEST


def test_no_more_waits_than_the_limit() -> None:
    pool = HostMemory(3 * BLOCK)
    tensors = [pool.empty(LARGE, torch.bfloat16) for _ in range(5)]
    last = tensors[-1].data_ptr()
    while tensors:
        tensors.pop(0)
        assert pool.waiting <= 3 * BLOCK
    assert pool.waiting == 3 * BLOCK
    assert pool.empty(LARGE, torch.bfloat16).data_ptr() == last
    pool.limit = BLOCK
    assert pool.waiting == BLOCK
    pool.limit = 0
    pool.empty(LARGE, torch.bfloat16)
    assert pool.waiting == 0
    with pytest.raises(ValueError, match="wanted a number of bytes"):
        pool.limit = -1


def test_released_memory_goes_back_to_the_system() -> None:
    pool = HostMemory(1 << 30)
    pool.empty((64 << 20,), torch.uint8).fill_(1)
    before = resident()
    pool.release()
    assert pool.waiting == 0
    assert before - resident() > 60 << 20


def test_tensors_may_die_on_any_thread() -> None:
    pool = HostMemory(2 * BLOCK)

    def use() -> None:
        for value in range(40):
            tensor = pool.empty(LARGE, torch.bfloat16)
            tensor[::4096] = value
            assert bool((tensor[::4096] == value).all())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.waiting <= 2 * BLOCK


def test_a_block_that_comes_back_under_the_lock_is_not_lost() -> None:
    """Garbage collection runs the finalizers of tensors in cycles wherever it likes."""
    pool = HostMemory(1 << 30)
    tensor = pool.empty(LARGE, torch.bfloat16)
    with pool._lock:
        del tensor
    assert pool.waiting == BLOCK


def test_memory_that_cannot_be_had_is_asked_of_torch() -> None:
    with pytest.raises(RuntimeError, match=r"(?i)memory"):
        HostMemory(1 << 30).empty((1 << 62,), torch.uint8)


def test_a_forked_child_has_a_pool() -> None:
    with host_memory.shared._lock:
        child = os.fork()
        if child == 0:
            host_memory.shared.empty(LARGE, torch.bfloat16)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_ops_take_their_results_from_the_pool() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 512, 4, 4096).bfloat16()
    given = (torch.randn(1, 512, 4096).bfloat16(), x, torch.rand(1, 512, 4), torch.rand(1, 512, 4, 4))
    host_memory.shared.release()
    first = kf.mhc_post(*given)
    bits, where = first.clone(), first.data_ptr()
    del first
    again = kf.mhc_post(*given)
    assert torch.equal(again, bits)
    assert again.data_ptr() == where or host_memory.shared.limit == 0


@pytest.mark.parametrize(("value", "bytes_"), [("0", 0), ("300", 300 << 20), ("", None)])
def test_the_environment_sets_the_limit(value: str, bytes_: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(host_memory.ENVIRONMENT, value)
    found = host_memory.default_limit()
    assert 0 < found <= 1 << 30 if bytes_ is None else found == bytes_


def test_a_limit_that_is_no_number_is_refused() -> None:
    environment = {**os.environ, host_memory.ENVIRONMENT: "lots"}
    done = subprocess.run(
        [sys.executable, "-c", "import kernelforge.runtime.host_memory"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "KERNELFORGE_HOST_CACHE_MIB: given 'lots', wanted a number of MiB" in done.stderr
