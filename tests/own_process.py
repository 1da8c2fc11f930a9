"""Python in a process of its own, for what environment variables decide once per process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def printed(code: str, test_file: str, **environment: str) -> str:
    """What ``code`` prints, stripped; it may import modules here and beside ``test_file``. Fails where it raises."""
    done = _run(code, test_file, environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def run_with_isa(isa: str, code: str, test_file: str) -> None:
    """The same with an instruction set of the CPU, "" for what it would take; skips where it has none of the name."""
    done = _run(code, test_file, {"KERNELFORGE_CPU_ISA": isa})
    if "failed with code 3" in done.stderr:
        pytest.skip(f"no {isa} here")
    assert done.returncode == 0, done.stderr


def _run(code: str, test_file: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    folders = [os.path.dirname(__file__), os.path.dirname(test_file), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)
