"""Every Python example of the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernelforge import backends

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "ops").glob("*.md"))]
AVAILABLE = {d.name for b in backends.backends().values() for d in b.devices() if d.available}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path) -> None:
    blocks = BLOCK.findall(page.read_text())
    assert blocks, f"{page.name} has no example"
    for block in blocks:
        missing = set(re.findall(r'backend="([^"]+)"', block)) - AVAILABLE
        if missing:
            pytest.skip(f"no {', '.join(sorted(missing))} here")
        exec(compile(block, str(page), "exec"), {"__name__": "example"})
