"""Rows sorted by group (tokens by expert) cut into row tiles, as a TileLang macro."""

from __future__ import annotations

from typing import Any

import tilelang.language as T


@T.macro
def group_of_tile(offsets: Any, groups: int, block_M: int, index: Any) -> Any:
    """Group, first row and number of rows of row tile ``index``; group -1 beyond the last tile.

    Tiles are counted group by group, each rounded up to whole ones: ``ceildiv(M, block_M) + groups`` suffice.

    Args:
        offsets: int32 [groups + 1]; group g is rows ``[offsets[g], offsets[g + 1])``.
        index: of the tile.

    Returns:
        Three int32 values, to be assigned to variables (``T.alloc_var``) of the kernel: a plain name is lost where a
        backend gives producers and consumers code of their own.
    """
    group = T.alloc_var("int32")
    row = T.alloc_var("int32")
    rows = T.alloc_var("int32")
    first = T.alloc_var("int32")
    group = -1
    row = 0
    rows = 0
    first = 0
    for g in T.serial(groups):
        tiles = T.ceildiv(offsets[g + 1] - offsets[g], block_M)
        if index >= first and index < first + tiles:
            group = g
            row = offsets[g] + (index - first) * block_M
            rows = T.min(offsets[g + 1] - offsets[g] - (index - first) * block_M, block_M)
        first = first + tiles
    return group, row, rows
