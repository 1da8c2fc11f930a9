"""Which page of a pool holds which entries of which sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


class Pages:
    """Pages of ``page`` entries, given to sequences as these grow.

    Entry i of sequence b lies in page ``table[b, i // page]`` at place ``i % page``.

    Attributes:
        page, count: entries to a page, and pages of the pool.
        table: int32 [batch, pages of the longest sequence], 0 where a sequence has no page yet.
    """

    def __init__(self, batch: int, most: int, page: int, count: int, device: torch.device | str) -> None:
        """``most``: entries of the longest sequence."""
        self.page, self.count = page, count
        self._owned: list[list[int]] = [[] for _ in range(batch)]
        self._free = list(range(count - 1, -1, -1))
        self.table = torch.zeros((batch, -(-most // page)), dtype=torch.int32, device=device)

    @property
    def used(self) -> int:
        """Pages that belong to a sequence."""
        return self.count - len(self._free)

    def grow(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Give each sequence pages for as many entries as (sequence, entries) says; all of them or none.

        Raises:
            ValueError: there are not enough pages.
        """
        missing = [(b, -(-entries // self.page) - len(self._owned[b])) for b, entries in wanted]
        total = sum(max(n, 0) for _, n in missing)
        if total > len(self._free):
            raise ValueError(
                f"pages: {total} more are needed and {len(self._free)} of {self.count} are free; end sequences with "
                "reset(), or make the cache with more pages"
            )
        for b, n in missing:
            if n > 0:
                new = [self._free.pop() for _ in range(n)]
                have = len(self._owned[b])
                self._owned[b] += new
                self.table[b, have : have + n] = torch.tensor(new, dtype=torch.int32, device=self.table.device)

    def release(self, sequence: int) -> None:
        """Take a sequence's pages back."""
        self._free += reversed(self._owned[sequence])
        self._owned[sequence] = []
        self.table[sequence] = 0

    def rows(self, sequences: Tensor, index: Tensor) -> Tensor:
        """Rows of the pool, int64, that hold entries ``index`` of ``sequences``: int64 of shapes that broadcast."""
        return self.table[sequences, index // self.page].to(torch.int64) * self.page + index % self.page
