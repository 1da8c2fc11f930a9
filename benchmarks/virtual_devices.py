"""What the virtual devices take: time and memory of their executors, held to limits.

``python benchmarks/virtual_devices.py`` measures an int8 GEMM of 256 x 256 x 512 and MXFP4 GEMMs of a model's width on
every virtual device, with and without the checkers, compares every result's bits, and writes
``benchmarks/results/virtual-devices-<device>.{json,md}``. It ends with exit code 1 where a limit is not kept. These
times say nothing about the devices.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import kernelforge as kf
from kernelforge.backends import Execution, executing
from kernelforge.bench import Report, Row
from kernelforge.runtime import KernelSpec, executable

HERE = Path(__file__).resolve().parent
DEVICES = {
    "cuda:virtual-sm_80": ("cuda:virtual", "sm_80"),
    "cuda:virtual-sm_90a": ("cuda:virtual", "sm_90a"),
    "ascend:virtual": ("ascend:virtual", ""),
}
"""By the name of their report: the device, and the architecture that it stands for."""
ROUNDS = 7
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
M, N, K = 64, 4096, 4096
MODES = ("W4A4", "W4A8", "W4A16")
MEMORY_ROWS = (512, 8192, 131072)
"""Of the int8 GEMM whose memory is measured: a grid, 16 times and 256 times as many blocks, on as many threads."""
NOTES = [
    "The executors' times on this host, kernels compiled before: they say nothing about the devices.",
    f"int8 GEMM: median of {ROUNDS} calls. Wide GEMMs: one call. Every result's bits are compared.",
    "Memory: the rise of a process's resident peak in its first launch. With the checkers, virtual CUDA adds up to 4 "
    "bytes, virtual Ascend 2, for each byte that a launch writes.",
]


@dataclass(frozen=True)
class Limits:
    """Most seconds of a call on two processors: the int8 GEMM without and with the checkers, a wide GEMM without."""

    unchecked: float
    checked: float | None
    wide: float


LIMITS = {"cuda:virtual": Limits(0.05, 0.5, 10.0), "ascend:virtual": Limits(0.2, None, 10.0)}


@contextmanager
def device(arch: str) -> Iterator[None]:
    """Calls on ``cuda:virtual`` in the block are for ``arch``."""
    before = os.environ.get("KERNELFORGE_CUDA_VIRTUAL_ARCH")
    if arch:
        os.environ["KERNELFORGE_CUDA_VIRTUAL_ARCH"] = arch
    try:
        yield
    finally:
        if arch and before is None:
            del os.environ["KERNELFORGE_CUDA_VIRTUAL_ARCH"]
        elif arch and before is not None:
            os.environ["KERNELFORGE_CUDA_VIRTUAL_ARCH"] = before


def int8_gemm(rows: int, name: str) -> tuple[Callable[[], None], torch.Tensor, torch.Tensor]:
    """A call of the int8 GEMM, what it writes, and what it must write."""
    columns, depth = 256, 512
    draw = np.random.default_rng(0)
    a, b = (draw.integers(-128, 128, (size, depth), dtype=np.int8) for size in (rows, columns))
    sa, sb = (draw.standard_normal((size, depth // 128)).astype(np.float32) for size in (rows, columns))
    wanted = np.zeros((rows, columns), np.float32)
    for q in range(depth // 128):
        block = slice(128 * q, 128 * q + 128)
        dot = a[:, block].astype(np.int32) @ b[:, block].astype(np.int32).T
        wanted = wanted + dot.astype(np.float32) * (sa[:, q : q + 1] * sb[:, q][None])
    sys.path[:0] = [] if str(HERE) in sys.path else [str(HERE)]  # the kernel's builder is found by name
    kernel = executable(KernelSpec.of("int8_gemm:int8_gemm", N=columns, K=depth), name)
    out = torch.zeros(rows, columns)
    tensors = [*map(torch.from_numpy, (a, b, sa, sb)), out]
    return (lambda: kernel(*tensors)), out, torch.from_numpy(wanted)


def wide_gemm(mode: str, name: str) -> Callable[[], torch.Tensor]:
    """A call of the MXFP4 GEMM at a model's width."""
    torch.manual_seed(0)
    x = torch.randn(M, K)
    w, w_scale = kf.quantize_mxfp4(torch.randn(N, K) * K**-0.5)
    a, a_scale = {
        "W4A4": lambda: kf.quantize_mxfp4(x),
        "W4A8": lambda: kf.quantize_mxfp8(x),
        "W4A16": lambda: (x.to(torch.bfloat16), None),
    }[mode]()
    return lambda: kf.mxfp4_gemm(a, a_scale, w, w_scale, backend=name)


def same_bits(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    """End the program where a bit differs."""
    if not torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)):
        raise SystemExit(f"{what}: the bits are not the expected ones")


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


_MEMORY = "--memory-of"


def memory_of_a_process(rows: int, name: str) -> int:
    """Bytes by which the peak of a new process rises in its first launch; the executor's caches are empty there."""
    command = [sys.executable, __file__, _MEMORY, str(rows), name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory_of_this_process(rows: int, name: str) -> int:
    """What :func:`memory_of_a_process` asks a new process for."""
    call, out, _ = int8_gemm(rows, name)
    out.fill_(1)  # resident before the call
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # the peak is what is resident now
    before = resident_peak()
    with executing(Execution(check=False)):
        call()
    return resident_peak() - before


def resident_peak() -> int:
    """Bytes of this process that were resident at most."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(shown: str, modes: list[str], observe: Callable[[str], None]) -> tuple[list[Row], list[str]]:
    """Rows of one device, and the limits it does not keep."""
    name, _ = DEVICES[shown]
    limits, rows, missed = LIMITS[name], [], []

    def add(what: str, taken: float, limit: float | None) -> None:
        rows.append(Row(what, {"s (executor)": taken, "limit s": limit}))
        if limit is not None and taken > limit:
            missed.append(f"{what} on {shown}: {taken:.3f} s, more than {limit} s")

    call, out, wanted = int8_gemm(256, name)
    for check, limit in ((False, limits.unchecked), (True, limits.checked)):
        checked = "with" if check else "without"
        observe(f"int8 GEMM on {shown} {checked} checkers")
        with executing(Execution(check=check)):
            call()
            same_bits(out, wanted, f"int8 GEMM on {shown}")
            add(f"int8 GEMM 256 x 256 x 512 {checked} checkers", seconds(call), limit)
    for mode in modes:
        wide = wide_gemm(mode, name)
        expected = wide_gemm(mode, "cpu")()
        for check, limit in ((False, limits.wide), (True, None)):
            checked = "with" if check else "without"
            observe(f"{mode} on {shown} {checked} checkers")
            with executing(Execution(check=check)):
                if not check:
                    wide()  # compiles
                begun = time.perf_counter()
                found = wide()
                taken = time.perf_counter() - begun
                same_bits(found, expected, f"{mode} on {shown}")
                add(f"{mode} M={M}, N={N}, K={K} {checked} checkers", taken, limit)
    observe(f"memory of {shown}")
    rises = {size // 128 * 2: memory_of_a_process(size, name) / 2**20 for size in MEMORY_ROWS}
    for blocks, rise in rises.items():
        rows.append(Row(f"memory of a launch of {blocks} blocks", {"MiB above operands": rise}))
    least, most = min(rises), max(rises)
    if rises[most] > rises[least] + 4:
        missed.append(f"memory on {shown} grows with the grid: {rises[least]:.1f} to {rises[most]:.1f} MiB")
    return rows, missed


def main() -> int:
    if sys.argv[1:2] == [_MEMORY]:
        print(memory_of_this_process(int(sys.argv[2]), sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--devices", default=",".join(DEVICES), help="some of %(default)s, each in a process of its own"
    )
    parser.add_argument("--modes", default=",".join(MODES), help="of the wide GEMM; empty for none")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    shown, *others = given.devices.split(",")
    if others:  # kernels that an op has loaded serve a process for one architecture
        rest = ["--modes", given.modes, "--out", str(given.out)]
        codes = [
            subprocess.run([sys.executable, __file__, "--devices", name, *rest], check=False).returncode
            for name in (shown, *others)
        ]
        return max(codes)
    modes = [mode for mode in given.modes.split(",") if mode]
    with device(DEVICES[shown][1]):
        rows, missed = measure(shown, modes, lambda what: print(f"  {what}", file=sys.stderr, flush=True))
    command = " ".join(["python benchmarks/virtual_devices.py", *sys.argv[1:]])
    data, page = Report("virtual-devices", command, shown, NOTES, rows).write(given.out)
    print(page.read_text(), f"\nwritten: {data}, {page}\n", *missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
