"""Helper modules beside tests can be imported by name; test files may share a name between folders."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += sorted({str(path.parent) for path in Path(__file__).parent.rglob("*.py")} - set(sys.path))
