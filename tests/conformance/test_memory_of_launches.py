"""Virtual devices hold the blocks that run, not the grid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "virtual_devices.py"
FEW, MANY = 512, 32768
"""Rows of the int8 GEMM: 8 blocks and 512."""
SHARED_PER_BLOCK = 2 * (128 + 128) * 128
"""Bytes of the kernel's two stages; what 504 blocks more would hold is 31.5 MiB."""


def rise(rows: int, device: str) -> int:
    """Bytes by which the peak of a new process rises in a launch, operands and result aside."""
    command = [sys.executable, str(BENCHMARK), "--memory-of", str(rows), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.parametrize("device", ["cuda:virtual", "ascend:virtual"])
def test_memory_of_a_launch_does_not_grow_with_its_grid(device):
    few, many = rise(FEW, device), rise(MANY, device)
    blocks = (MANY - FEW) // 128 * 2
    assert many - few < 4 << 20 < blocks * SHARED_PER_BLOCK
