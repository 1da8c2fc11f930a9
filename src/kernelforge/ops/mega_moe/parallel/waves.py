"""Which rows travel when: experts cut into waves, and the order of rows on both ends."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray


class WavePlan:
    """Every rank makes the same plan from the same counts.

    A rank's experts are cut into waves with about the same cost, those first that give other ranks the most rows for
    what they cost: their results travel while experts with the rank's own rows are computed. Within a wave experts keep
    their order. Rank s holds its rows in the order of hosts, waves and experts; those that go to rank r in wave w are
    one slice of them. Rank r receives the slices of all ranks in rank order and sorts them by expert, then rank: the
    order in which one process would hold the rows of all ranks' tokens, whatever the waves.

    Args:
        counts: rows of rank s for expert e, [ranks, experts]; experts are split evenly over ranks, neighbours together.
        rank: whose plan this is.
        waves: at least 1; at most the experts with rows of any one rank, else some would be empty everywhere.
        row_cost, expert_cost: by which waves are balanced: of one row, and of an expert with at least one.
    """

    def __init__(
        self, counts: NDArray[np.int64], rank: int, waves: int, row_cost: float = 1.0, expert_cost: float = 0.0
    ) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.ranks, self.experts = self.counts.shape
        self.rank = rank
        self.local = self.experts // self.ranks
        total = self.counts.sum(0)
        busy = (total.reshape(self.ranks, self.local) > 0).sum(1)
        self.waves = max(1, min(waves, int(busy.max())))
        cost = row_cost * total + expert_cost * (total > 0)
        hosts = [self._wave_by_wave(host, total, cost) for host in range(self.ranks)]
        self._cuts = [cuts for _, cuts in hosts]
        self._order = np.concatenate([order for order, _ in hosts])
        self._counts = self.counts[:, self._order]
        self._starts = np.concatenate([[0], np.cumsum(self._counts[rank])])

    def _wave_by_wave(
        self, host: int, total: NDArray[np.int64], cost: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A rank's experts in the order of their waves, and where each wave begins among them."""
        experts = np.arange(host * self.local, (host + 1) * self.local)
        given = total[experts] - self.counts[host, experts]
        own = cost[experts]
        first = np.lexsort((experts, -given / np.where(own > 0, own, 1.0), total[experts] == 0))
        cuts = _cut(own[first], self.waves)
        waves = np.split(experts[first], cuts[1:-1])
        return np.concatenate([np.sort(wave) for wave in waves]), cuts

    @property
    def rows(self) -> int:
        """Rows this rank holds as a source."""
        return int(self._starts[-1])

    @property
    def hosted(self) -> int:
        """Rows this rank's experts receive in all waves."""
        return int(self._mine(0, self.waves).sum())

    @property
    def travelling(self) -> NDArray[np.int64]:
        """This rank's rows in the order in which they travel, by their place among rows sorted by expert: [rows]."""
        counts = self.counts[self.rank]
        starts = np.cumsum(counts) - counts
        return _ranges(starts[self._order], counts[self._order])

    def going(self, wave: int, peer: int) -> slice:
        """Of this rank's rows, those that go to ``peer`` in ``wave``."""
        first = peer * self.local
        cuts = self._cuts[peer]
        return slice(int(self._starts[first + cuts[wave]]), int(self._starts[first + cuts[wave + 1]]))

    def coming(self, wave: int) -> list[slice]:
        """Of the rows received in ``wave``, in rank order, each rank's."""
        ends = np.cumsum(self._mine(wave, wave + 1).sum(1))
        return [slice(int(begin), int(end)) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    def by_expert(self, wave: int) -> NDArray[np.int64]:
        """Places of the received rows (in rank order) in the order expert, rank: int64 [rows of the wave]."""
        counts = self._mine(wave, wave + 1)
        ends = np.cumsum(counts).reshape(counts.shape)
        return _ranges((ends - counts).T.ravel(), counts.T.ravel())

    def offsets(self, wave: int) -> NDArray[np.int32]:
        """Where each local expert's rows begin in the wave, int32 [local + 1]; experts of other waves are empty."""
        first, cuts = self.rank * self.local, self._cuts[self.rank]
        experts = self._order[first + cuts[wave] : first + cuts[wave + 1]]
        per_expert = np.zeros(self.local, dtype=np.int64)
        per_expert[experts - first] = self._mine(wave, wave + 1).sum(0)
        return np.concatenate([[0], np.cumsum(per_expert)]).astype(np.int32)

    def _mine(self, begin: int, end: int) -> NDArray[np.int64]:
        """Counts of the rows that reach this rank's experts in waves ``begin`` to ``end``, [ranks, experts]."""
        first, cuts = self.rank * self.local, self._cuts[self.rank]
        return self._counts[:, first + cuts[begin] : first + cuts[end]]


def _cut(cost: NDArray[np.float64], waves: int) -> NDArray[np.int64]:
    """Boundaries of ``waves`` runs of neighbours with about the same cost each, [waves + 1].

    Experts without cost are the last ones; as long as there are others, no run is without any.
    """
    total = np.concatenate([[0.0], np.cumsum(cost)])
    busy = int(np.count_nonzero(cost))
    goals = total[-1] * np.arange(1, waves) / waves
    after = np.minimum(np.searchsorted(total, goals), len(cost))
    before = np.maximum(after - 1, 0)
    nearest = np.where(goals - total[before] <= total[after] - goals, before, after)
    least = np.minimum(np.arange(1, waves), busy)
    most = np.maximum(busy - np.arange(waves - 1, 0, -1), least)
    return np.concatenate([[0], np.clip(nearest, least, most), [len(cost)]]).astype(np.int64)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers of [start, start + length) for each pair, one after another."""
    shift = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return shift + np.arange(int(lengths.sum()))


@functools.cache
def peers(rank: int, size: int) -> tuple[int, ...]:
    """The other ranks, the next one first: so that no two ranks begin with the same."""
    return tuple((rank + turn) % size for turn in range(1, size))
