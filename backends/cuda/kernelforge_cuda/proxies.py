"""Fences between the proxies through which a GPU reaches shared memory."""

from __future__ import annotations

import re

_WAIT = re.compile(r"tl::cp_async_wait<\w+>\(\);")


def with_proxy_fences(source: str) -> str:
    """Order asynchronous copies before the ``wgmma`` that reads what they wrote.

    ``cp.async`` writes through the generic proxy, ``wgmma`` reads through the async one, and PTX wants a
    ``fence.proxy.async`` in between (PTX ISA, "Async proxy"). TileLang 0.1.15 puts one behind plain stores alone. Here
    each thread makes one when its copies are complete, ahead of the barrier behind which others multiply.
    """
    if "tl::wgmma" not in source:
        return source
    return _WAIT.sub(lambda wait: f"{wait[0]} tl::fence_proxy_async();", source)
