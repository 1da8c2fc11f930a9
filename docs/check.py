"""Every relative link of the documentation leads somewhere, and every page can be reached from the index."""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def main() -> int:
    pages = [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
    problems, linked = [], set()
    for page in pages:
        for target in LINK.findall(page.read_text()):
            if "://" in target:
                continue
            path = (page.parent / target).resolve()
            linked.add(path)
            if not path.exists():
                problems.append(f"{page.relative_to(DOCS.parent)}: {target} does not exist")
    for page in DOCS.glob("*.md"):
        if page.name != "index.md" and page.resolve() not in linked:
            problems.append(f"docs/{page.name}: no page links to it")
    print("\n".join(problems) or f"{len(pages)} pages, {len(linked)} links")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
