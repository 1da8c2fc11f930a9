"""Python in a process of its own, for what environment variables decide once per process."""

from __future__ import annotations

import os
import subprocess
import sys


def printed(code: str, test_file: str, **environment: str) -> str:
    """What ``code`` prints, stripped; it may import modules here and beside ``test_file``. Fails where it raises."""
    folders = [os.path.dirname(__file__), os.path.dirname(test_file), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
