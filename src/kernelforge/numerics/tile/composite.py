"""Named regions around portable default bodies."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

KEY = "kf.composite"
"""Attribute key under which a composite region survives into a backend's passes."""


def composite(name: str, *operands: Any, **parameters: int) -> Any:
    """Open a region that a backend may take whole.

    Args:
        name: the primitive, e.g. ``"mx_block_accumulate"``.
        operands: tiles, in the order of the primitive's signature.
        parameters: integers that select a variant of the primitive.

    Use as ``with composite("name", acc, a, variant=2):`` around the portable body. The operands are recorded
    as loads of each tile's first element, so every pass that renames a buffer renames them too.
    """
    firsts = [tile[tuple(0 for _ in tile.shape)] for tile in operands]
    return T.attr(dict(parameters), KEY, T.call_extern("int32", name, *firsts))
