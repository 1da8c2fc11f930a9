"""What a process waits for before its first result: imports, and the first call of a kernel.

``python benchmarks/first_call.py`` calls the MXFP4 GEMM in new processes, first with an empty kernel cache, then with
the cache that the first process left, and writes ``benchmarks/results/first_call-<device>.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from kernelforge.bench import Report, Row

HERE = Path(__file__).resolve().parent
CALL = """
import json, sys, time
from pathlib import Path

marks = [time.perf_counter()]
def mark(): marks.append(time.perf_counter())
import torch
mark()
import kernelforge as kf
kf.mxfp4_gemm  # names are imported when they are used
mark()
a, w = torch.zeros(1, 16, dtype=torch.uint8), torch.zeros(64, 16, dtype=torch.uint8)
a_scale, w_scale = torch.zeros(1, 1, dtype=torch.uint8), torch.zeros(64, 1, dtype=torch.uint8)
for _ in range(2):
    begun = time.perf_counter()
    kf.mxfp4_gemm(a, a_scale, w, w_scale, backend=sys.argv[1])
    marks.append(marks[-1] + time.perf_counter() - begun)
print(json.dumps([1e3 * (after - before) for before, after in zip(marks, marks[1:])]))
"""
PARTS = ("import torch, ms", "import kernelforge, ms", "first call, ms", "second call, ms")


def milliseconds(device: str, cache: Path) -> list[float]:
    """The parts of one new process."""
    done = subprocess.run(
        [sys.executable, "-c", CALL, device],
        env={**os.environ, "KERNELFORGE_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="a device of kernelforge")
    parser.add_argument("--processes", type=int, default=5, help="with a full cache")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    report = Report("first_call", f"python benchmarks/first_call.py --device {given.device}", given.device)
    report.notes += [
        "W4A4, M=1, N=64, K=32, in new processes, each part timed in the process.",
        f"Empty cache: one process, which compiles. Full cache: medians of {given.processes} processes; they start no "
        "compiler and do not import TileLang.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        compiled = milliseconds(given.device, Path(folder))
        runs = [milliseconds(given.device, Path(folder)) for _ in range(given.processes)]
    found = [statistics.median(parts) for parts in zip(*runs, strict=True)]
    report.rows += [
        Row("empty cache", dict(zip(PARTS, compiled, strict=True))),
        Row("full cache", dict(zip(PARTS, found, strict=True))),
    ]
    data, page = report.write(given.out)
    print(page.read_text(), f"\nwritten: {data}, {page}", sep="")


if __name__ == "__main__":
    main()
