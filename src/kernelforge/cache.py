"""The key-value cache of one layer of compressed attention.

A layer keeps the raw entries of the last ``window`` tokens, one compressed entry for every ``ratio`` tokens, with CSA
an indexer key per entry, and what the compressors need to go on. Everything is allocated once, for ``capacity`` tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from .ops.compress.state import CompressState
from .ops.mx_quantize.op import quantize_mxfp4, quantize_mxfp8
from .ops.support import expect, meta, require_tensor

Tensor = torch.Tensor
STORAGES = ("bfloat16", "float8_e4m3fn")
BLOCK = 32
"""Elements under one scale."""


def entry_bytes(D: int, rope: int, storage: str, index_D: int = 0) -> int:
    """Bytes of one compressed entry and, with ``index_D``, its indexer key.

    The ``rope`` rotary channels are bfloat16; the others bfloat16, or E4M3 with an E8M0 scale per 32; keys are E2M1
    with an E8M0 scale per 32.
    """
    plain = D - rope
    stored = 2 * plain if storage == "bfloat16" else plain + plain // BLOCK
    return stored + 2 * rope + index_D // 2 + index_D // BLOCK


class CompressedKV:
    """The cache of one CSA or HCA layer.

    Use it with the ops that fill and read it::

        entries, _ = kf.csa_compress(kv, gate, bias, weight, cos, sin, state=cache.state)
        keys, _ = kf.csa_compress(index_kv, index_gate, ..., state=cache.index_state)
        cache.append(raw, entries, keys)
        cache.window, cache.entries(), cache.index_keys()   # what the attention and the indexer read

    Sequences of a batch advance together.

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
        state_dtype: of the compressors' inputs.
        device: of all tensors.

    Attributes:
        length: tokens fed so far.
        window: raw entries of the last tokens, bfloat16 [B, min(length, window), D], oldest first.
        state, index_state: :class:`kernelforge.CompressState` of the entries' compressor and of the keys'.

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
        self.batch, self.capacity, self.D, self.rope, self.ratio = batch, capacity, D, rope, ratio
        self.storage, self.index_D, self.length, self.count = storage, index_D, 0, 0
        slots, plain = capacity // ratio, D - rope

        def empty(width: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros((batch, slots, width), dtype=dtype, device=device)

        self._raw = torch.zeros((batch, window, D), dtype=torch.bfloat16, device=device)
        self._rotary = empty(rope, torch.bfloat16)
        self._plain = empty(plain, getattr(torch, storage))
        self._scale = empty(plain // BLOCK if storage != "bfloat16" else 0, torch.uint8)
        self._keys, self._key_scale = empty(index_D // 2, torch.uint8), empty(index_D // BLOCK, torch.uint8)
        self.state = CompressState.start(batch, ratio, D, overlap, state_dtype, device)
        self.index_state = CompressState.start(batch, ratio, index_D, overlap, state_dtype, device) if index_D else None

    def append(self, raw: Tensor, entries: Tensor, index_entries: Tensor | None = None) -> None:
        """Add tokens, and the entries that they completed.

        Args:
            raw: normalized and rotated raw entries of the new tokens, bfloat16 [B, S, D].
            entries: what the compressor returned for them, bfloat16 or float32 [B, n, D], n = ``(length + S) // ratio -
                length // ratio``; rounded to the storage here.
            index_entries: the indexer keys of these entries, bfloat16 or float32 [B, n, index_D]; stored as MXFP4.

        Raises:
            TypeError, ValueError: an argument is wrong, or the capacity is exceeded.
        """
        require_tensor("raw", raw)
        require_tensor("entries", entries)
        device = self._raw.device
        expect("raw", meta(raw), (torch.bfloat16,), (self.batch, "S", self.D), device)
        length = self.length + raw.shape[1]
        if length > self.capacity:
            raise ValueError(f"raw: {raw.shape[1]} tokens after {self.length} exceed the capacity of {self.capacity}")
        n = length // self.ratio - self.count
        floats = (torch.bfloat16, torch.float32)
        expect("entries", meta(entries), floats, (self.batch, n, self.D), device)
        if self.index_D:
            expect("index_entries", meta(index_entries), floats, (self.batch, n, self.index_D), device)
        elif index_entries is not None:
            raise ValueError("index_entries: given, but this cache has no indexer; make it with index_D")
        keep = self._raw.shape[1]
        self._raw = torch.cat((self._raw, raw), 1)[:, -keep:].contiguous()
        if n:
            self._store(slice(self.count, self.count + n), entries, index_entries)
        self.length, self.count = length, self.count + n

    def _store(self, at: slice, entries: Tensor, index_entries: Tensor | None) -> None:
        plain = self.D - self.rope
        self._rotary[:, at] = entries[..., plain:].to(torch.bfloat16)
        if self.storage == "bfloat16":
            self._plain[:, at] = entries[..., :plain].to(torch.bfloat16)
        else:
            codes, scale = quantize_mxfp8(entries[..., :plain].contiguous())
            self._plain[:, at] = codes
            self._scale[:, at] = scale
        if index_entries is not None:
            packed, scale = quantize_mxfp4(index_entries)
            self._keys[:, at] = packed
            self._key_scale[:, at] = scale

    @property
    def window(self) -> Tensor:
        """Raw entries of the last tokens, bfloat16 [B, min(length, window), D], oldest first."""
        kept = min(self.length, self._raw.shape[1])
        return self._raw[:, self._raw.shape[1] - kept :].contiguous()

    def entries(self) -> Tensor:
        """All compressed entries, bfloat16 [B, count, D]; of E4M3, the stored values exactly."""
        plain = self._plain[:, : self.count]
        if self.storage != "bfloat16":
            # A scale's byte is its exponent field: 255, NaN to a block of zeros, becomes infinity times zero.
            scale = (
                (self._scale[:, : self.count].to(torch.int32) << 23).view(torch.float32).repeat_interleave(BLOCK, -1)
            )
            plain = (plain.to(torch.float32) * scale).to(torch.bfloat16)
        return torch.cat((plain, self._rotary[:, : self.count]), -1)

    def index_keys(self) -> tuple[Tensor, Tensor]:
        """E2M1 keys [B, count, index_D / 2] and their E8M0 scales [B, count, index_D / 32]; uint8, contiguous."""
        return self._keys[:, : self.count].contiguous(), self._key_scale[:, : self.count].contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is allocated."""
        own = (self._raw, self._rotary, self._plain, self._scale, self._keys, self._key_scale)
        states = [state for state in (self.state, self.index_state) if state is not None]
        return sum(x.numel() * x.element_size() for x in own) + sum(state.nbytes for state in states)

    @property
    def bytes_per_token(self) -> float:
        """Bytes that one more token of context costs; the window and the states do not grow."""
        return entry_bytes(self.D, self.rope, self.storage, self.index_D) / self.ratio

    def describe(self) -> dict[str, Any]:
        """What a report shows of this cache."""
        return {
            "tokens": self.length,
            "entries": self.count,
            "storage": self.storage,
            "bytes": self.nbytes,
            "bytes per token": self.bytes_per_token,
        }
