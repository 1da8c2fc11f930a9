"""The key-value cache of one layer of compressed attention.

A layer keeps the raw entries of the last ``window`` tokens, one compressed entry for every ``ratio`` tokens, with CSA
an indexer key per entry, and what the compressors need to go on. Everything is allocated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..ops.compress.state import CompressState
from ..ops.compressed_attention.problem import ascending
from ..ops.support import expect, meta, require_tensor
from .pages import Pages
from .storage import BLOCK, STORAGES, Keys, MicroscaledEntries, PlainEntries, entry_bytes

Tensor = torch.Tensor
FLOATS = (torch.bfloat16, torch.float32)
KEY_STEP = 4096
"""Keys of one sequence are handed out in such steps, so that shapes, and what is planned for them, seldom change."""


class Attended(NamedTuple):
    """What :func:`kernelforge.csa_attention` and :func:`kernelforge.hca_attention` take of a cache."""

    entries: Tensor
    indices: Tensor | None
    block_table: Tensor | None


class CompressedKV:
    """The cache of one CSA or HCA layer.

    Use it with the ops that fill and read it, a piece of S tokens at a time::

        entries, _ = kf.csa_compress(kv, gate, bias, weight, cos, sin, state=cache.state, lengths=lengths)
        keys, _ = kf.csa_compress(index_kv, index_gate, ..., state=cache.index_state, lengths=lengths)
        positions = cache.positions(S, lengths)
        raw_entries, kv_start = cache.with_window(raw)
        cache.append(raw, entries, keys, lengths)
        chosen = kf.lightning_indexer(q, q_scale, *cache.index_keys(), weights, topk, (positions + 1) // ratio)
        at = cache.attended(chosen)
        kf.csa_attention(query, raw_entries, at.entries, at.indices, sink, positions,
                         kv_start=kv_start, block_table=at.block_table)

    Sequences may have different lengths, and get different numbers of tokens at a time (``lengths``), also none. What
    is read has the same bits however tokens were fed and wherever entries lie.

    Args:
        batch: sequences.
        capacity: most tokens of a sequence.
        D: channels of an entry; ``D - rope`` is a multiple of 32.
        rope: rotary channels, the last ones.
        ratio: tokens per entry.
        overlap: CSA (two series of channels) or HCA.
        window: raw entries that are kept.
        storage: of the channels that are not rotary: ``"bfloat16"``, or ``"float8_e4m3fn"`` (MXFP8, a scale per 32).
        index_D: channels of the indexer's keys, a multiple of 32, or 0 for a layer without an indexer.
        page: entries to a page; None reserves ``capacity`` tokens for each sequence, side by side.
        pages: of all sequences together; None is as many as all can need. Sequences take them as they grow.
        state_dtype: of the compressors' inputs.
        device: of all tensors.

    Attributes:
        state, index_state: :class:`kernelforge.CompressState` of the entries' compressor and of the keys';
            ``state.rows(b, b + 1)`` is that of sequence b alone.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        D: int = 512,
        rope: int = 64,
        ratio: int = 4,
        overlap: bool = True,
        window: int = 128,
        storage: str = "float8_e4m3fn",
        index_D: int = 0,
        page: int | None = None,
        pages: int | None = None,
        state_dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        if storage not in STORAGES:
            raise ValueError(f"storage: given {storage!r}, wanted one of {STORAGES}")
        if not 0 < rope < D or (D - rope) % BLOCK or D % BLOCK:
            raise ValueError(
                f"D: given {D} with rope {rope}, wanted D and D - rope to be positive multiples of {BLOCK}"
            )
        if index_D % BLOCK or index_D < 0:
            raise ValueError(f"index_D: given {index_D}, wanted a multiple of {BLOCK}, or 0")
        if min(batch, capacity, ratio, window) < 1:
            raise ValueError(
                f"batch, capacity, ratio, window: given {(batch, capacity, ratio, window)}, wanted at least 1"
            )
        if page is None and pages is not None:
            raise ValueError(f"pages: given {pages} without page, the entries to each")
        if page is not None and min(page, 1 if pages is None else pages) < 1:
            raise ValueError(f"page, pages: given {page} and {pages}, wanted at least 1")
        self.batch, self.capacity, self.D, self.rope, self.ratio = batch, capacity, D, rope, ratio
        self.storage, self.index_D, self.paged = storage, index_D, page is not None
        most = max(capacity // ratio, 1)
        each = page or most
        count = pages if pages is not None else batch * -(-most // each)
        self._pages = Pages(batch, most, each, count, device)
        if page is None:
            self._pages.grow([(b, most) for b in range(batch)])
        make = PlainEntries if storage == "bfloat16" else MicroscaledEntries
        self._entries = make(count * each, D, rope, device)
        self._keys = Keys(count * each, index_D, device)
        self._raw = torch.zeros((batch, window, D), dtype=torch.bfloat16, device=device)
        self._lengths = [0] * batch
        self.state = CompressState.start(batch, ratio, D, overlap, state_dtype, device)
        self.index_state = CompressState.start(batch, ratio, index_D, overlap, state_dtype, device) if index_D else None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens fed so far, of each sequence."""
        return tuple(self._lengths)

    @property
    def counts(self) -> tuple[int, ...]:
        """Compressed entries of each sequence."""
        return tuple(self._counts(range(self.batch)))

    @property
    def block_table(self) -> Tensor | None:
        """int32 [B, pages of the longest sequence], the pages of each sequence in order; None without pages."""
        return self._pages.table if self.paged else None

    def append(
        self,
        raw: Tensor,
        entries: Tensor,
        index_entries: Tensor | None = None,
        lengths: Tensor | None = None,
        sequences: Sequence[int] | None = None,
    ) -> None:
        """Add tokens, and the entries that they completed; all of it or, where an error is raised, nothing.

        Args:
            raw: normalized and rotated raw entries of the new tokens, bfloat16 [B, S, D].
            entries: what the compressor returned for them, bfloat16 or float32 [B, n, D]; rounded to the storage here.
                n is the number that the sequence completes which completes most, or what the compressor was asked for.
            index_entries: the indexer keys of these entries, bfloat16 or float32 [B, n, index_D]; stored as MXFP4.
            lengths: int32 [B], how many of the S tokens are there, as the compressor got it; None for all of them.
            sequences: which sequences of the cache the B rows are, each once; None for all in order.

        Raises:
            TypeError, ValueError: an argument is wrong, or the capacity or the pages are exceeded.
        """
        require_tensor("raw", raw)
        require_tensor("entries", entries)
        device, chosen = self._raw.device, self._chosen(sequences)
        B = len(chosen)
        expect("raw", meta(raw), (torch.bfloat16,), (B, "S", self.D), device)
        added = self._added(raw.shape[1], lengths, B)
        after = [self._lengths[b] + more for b, more in zip(chosen, added, strict=True)]
        for b, more, length in zip(chosen, added, after, strict=True):
            if length > self.capacity:
                raise ValueError(
                    f"raw: {more} tokens after {self._lengths[b]} exceed the capacity of {self.capacity} (sequence {b})"
                )
        before = self._counts(chosen)
        completed = [length // self.ratio - count for length, count in zip(after, before, strict=True)]
        least, given = max(completed, default=0), entries.shape[1] if entries.dim() == 3 else -1
        n = given if least <= given <= -(-raw.shape[1] // self.ratio) else least
        expect("entries", meta(entries), FLOATS, (B, n, self.D), device)
        if self.index_D:
            expect("index_entries", meta(index_entries), FLOATS, (B, n, self.index_D), device)
        elif index_entries is not None:
            raise ValueError("index_entries: given, but this cache has no indexer; make it with index_D")
        self._pages.grow([(b, length // self.ratio) for b, length in zip(chosen, after, strict=True)])
        at = torch.tensor(chosen, dtype=torch.int64, device=device)
        if least:
            self._store(at, before, completed, entries, index_entries)
        self._slide(at, raw, added)
        for b, length in zip(chosen, after, strict=True):
            self._lengths[b] = length

    def _chosen(self, sequences: Sequence[int] | None) -> list[int]:
        if sequences is None:
            return list(range(self.batch))
        chosen = list(sequences)
        if len(set(chosen)) < len(chosen) or any(not 0 <= b < self.batch for b in chosen):
            raise ValueError(f"sequences: given {chosen}, wanted different ones of 0 to {self.batch - 1}")
        return chosen

    def _counts(self, chosen: Sequence[int]) -> list[int]:
        return [self._lengths[b] // self.ratio for b in chosen]

    def _added(self, S: int, lengths: Tensor | None, B: int) -> list[int]:
        if lengths is None:
            return [S] * B
        require_tensor("lengths", lengths)
        expect("lengths", meta(lengths), (torch.int32,), (B,), self._raw.device)
        given: list[int] = lengths.tolist()
        if any(not 0 <= length <= S for length in given):
            raise ValueError(f"lengths: given {given}, wanted 0 to {S}, the tokens there are")
        return given

    def _store(
        self, at: Tensor, before: list[int], completed: list[int], entries: Tensor, index_entries: Tensor | None
    ) -> None:
        """Write the first ``completed`` entries of each row after the ``before`` ones that its sequence has."""
        counts = torch.tensor(completed, device=at.device)
        row = torch.arange(len(completed), device=at.device).repeat_interleave(counts)
        step = torch.arange(len(row), device=at.device) - (counts.cumsum(0) - counts)[row]
        rows = self._pages.rows(at[row], torch.tensor(before, device=at.device)[row] + step)
        for store, new in ((self._entries, entries), (self._keys, index_entries)):
            if new is not None:
                flat = new.view(-1, new.shape[2])
                store.write(rows, flat if len(flat) == len(row) else flat[row * new.shape[1] + step])

    def _slide(self, at: Tensor, raw: Tensor, added: list[int]) -> None:
        """Keep the last ``window`` of the kept rows and the first ``added`` new ones."""
        window = self._raw.shape[1]
        both = torch.cat((self._raw[at], raw), 1)
        if min(added, default=0) == raw.shape[1]:
            recent = both[:, raw.shape[1] :]
        else:
            last = torch.tensor(added, device=at.device)[:, None] + torch.arange(window, device=at.device)
            recent = both[torch.arange(len(added), device=at.device)[:, None], last]
        self._raw.index_copy_(0, at, recent)

    def reset(self, sequences: Sequence[int] | None = None) -> None:
        """End sequences (None: all): they begin anew, and their pages are free."""
        for b in self._chosen(sequences):
            self._lengths[b] = 0
            if self.paged:
                self._pages.release(b)
            for state in (self.state, self.index_state):
                if state is not None:
                    state.position[b] = 0

    def positions(self, S: int, lengths: Tensor | None = None, sequences: Sequence[int] | None = None) -> Tensor:
        """Positions of the next S tokens, int32 [B, S]; -1 beyond a row's ``lengths``."""
        chosen = self._chosen(sequences)
        device, step = self._raw.device, torch.arange(S, dtype=torch.int32, device=self._raw.device)
        positions = torch.tensor([self._lengths[b] for b in chosen], dtype=torch.int32, device=device)[:, None] + step
        if lengths is None:
            return positions
        added = torch.tensor(self._added(S, lengths, len(chosen)), device=device)
        return torch.where(step < added[:, None], positions, -1)

    def with_window(self, raw: Tensor, sequences: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """What the next tokens' queries see of raw entries; call it before :meth:`append`.

        Args:
            raw: of the next tokens, bfloat16 [B, S, D].
            sequences: as in :meth:`append`.

        Returns:
            Kept and new raw entries, bfloat16 [B, window + S, D], and the position of their first row, int32 [B]:
            ``kv`` and ``kv_start`` of the attentions. It is negative, and so never seen, before a sequence's start.
        """
        require_tensor("raw", raw)
        chosen = self._chosen(sequences)
        expect("raw", meta(raw), (torch.bfloat16,), (len(chosen), "S", self.D), self._raw.device)
        start = [self._lengths[b] - self._raw.shape[1] for b in chosen]
        kept = torch.cat((_of(self._raw, chosen), raw), 1)
        return kept, torch.tensor(start, dtype=torch.int32, device=raw.device)

    @property
    def window(self) -> Tensor:
        """Raw entries of the last tokens, bfloat16 [B, T, D]; the last row is a sequence's last token.

        T is at most ``window``, and the length of the longest sequence; shorter ones have zeros in front.
        """
        kept = min(max(self._lengths), self._raw.shape[1])
        last = self._raw[:, self._raw.shape[1] - kept :]
        step = torch.arange(kept, 0, -1, device=last.device)
        there = step <= torch.tensor(self._lengths, device=last.device)[:, None]
        return torch.where(there[..., None], last, 0)

    def entries(self, sequences: Sequence[int] | None = None) -> Tensor:
        """Compressed entries side by side, bfloat16 [B, n, D] of n the most; of E4M3, the stored values exactly.

        Shorter sequences have zeros behind.
        """
        chosen = self._chosen(sequences)
        counts = self._counts(chosen)
        n = max(counts, default=0)
        if len(chosen) == 1 and not self.paged:
            first = chosen[0] * self._pages.page
            return self._entries.read(slice(first, first + n))[None]
        device = self._raw.device
        step = torch.arange(n, device=device)
        rows = self._pages.rows(torch.tensor(chosen, device=device)[:, None], step)
        found = self._entries.read(rows.view(-1)).view(len(chosen), n, self.D)
        return torch.where((step < torch.tensor(counts, device=device)[:, None])[..., None], found, 0)

    def attended(self, indices: Tensor | None = None, sequences: Sequence[int] | None = None) -> Attended:
        """What the attentions take: ``entries``, ``indices`` and ``block_table``.

        In bfloat16 storage this is the storage itself, whatever is in it; queries see complete entries by their
        positions, or by ``indices``. Of E4M3 the entries are converted: all, or only those that ``indices`` name.

        Args:
            indices: int32 [B, S, K], -1 for none, of :func:`kernelforge.lightning_indexer`; None for HCA.
            sequences: as in :meth:`append`.
        """
        chosen = self._chosen(sequences)
        if isinstance(self._entries, PlainEntries):
            values = self._entries.values.view(self._pages.count, self._pages.page, self.D)
            if self.paged:
                return Attended(values, indices, _of(self._pages.table, chosen))
            return Attended(_of(values, chosen), indices, None)
        if indices is None or indices[0].numel() >= max(self.counts):
            return Attended(self.entries(sequences), indices, None)
        B, S, K = indices.shape
        sorted_ = ascending(indices, max(self.counts)).view(B, S * K)
        at = torch.tensor(chosen, device=indices.device)[:, None]
        rows = self._pages.rows(at, sorted_.clamp(min=0).to(torch.int64))
        found = self._entries.read(rows.view(-1)).view(B, S * K, self.D)
        step = torch.arange(S * K, dtype=torch.int32, device=indices.device)
        return Attended(found, torch.where(sorted_ < 0, -1, step).view(B, S, K), None)

    def index_keys(self, sequences: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """E2M1 keys [B, T, index_D / 2] and their E8M0 scales [B, T, index_D / 32]; uint8, contiguous.

        T is at least the most entries that a sequence has; what lies behind is not to be seen (``kv_len`` of the
        indexer). Without pages it is the storage itself, with pages a copy.

        Raises:
            ValueError: the cache has no indexer.
        """
        if not self.index_D:
            raise ValueError("index_keys: this cache has no indexer; make it with index_D")
        chosen, page = self._chosen(sequences), self._pages.page
        n = -(-max(self._counts(chosen), default=0) // KEY_STEP) * KEY_STEP
        pools = (x.view(self._pages.count, page, x.shape[1]) for x in self._keys.tensors)
        if self.paged:
            table = _of(self._pages.table, chosen)[:, : -(-n // page)].to(torch.int64)
            packed, scale = (x[table].flatten(1, 2) for x in pools)
        else:
            narrow = slice(n if len(chosen) == 1 else None)
            packed, scale = (_of(x, chosen)[:, narrow].contiguous() for x in pools)
        return packed, scale

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is allocated."""
        states = [state for state in (self.state, self.index_state) if state is not None]
        own = (self._raw, self._pages.table, *self._entries.tensors, *self._keys.tensors)
        return sum(x.untyped_storage().nbytes() for x in own) + sum(state.nbytes for state in states)

    @property
    def bytes_per_token(self) -> float:
        """Bytes that one more token of context costs; the window and the states do not grow."""
        return entry_bytes(self.D, self.rope, self.storage, self.index_D) / self.ratio

    def describe(self) -> dict[str, Any]:
        """What a report shows of this cache."""
        found: dict[str, Any] = {"tokens": sum(self._lengths), "entries": sum(self.counts), "storage": self.storage}
        if self.paged:
            found |= {"pages": self._pages.count, "pages used": self._pages.used, "entries to a page": self._pages.page}
        return found | {"bytes": self.nbytes, "bytes per token": self.bytes_per_token}


def _of(x: Tensor, chosen: list[int]) -> Tensor:
    """The rows of chosen sequences; neighbours are not copied."""
    first = chosen[0] if chosen else 0
    if chosen == list(range(first, first + len(chosen))):
        return x[first : first + len(chosen)]
    return x[torch.tensor(chosen, dtype=torch.int64, device=x.device)]
