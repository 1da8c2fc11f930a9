"""How the rows of a cache are kept: entries in bfloat16 or E4M3, and indexer keys in MXFP4."""

from __future__ import annotations

import torch

from ..ops.mx_quantize.op import quantize_mxfp4, quantize_mxfp8

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


def _zeros(rows: int, width: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return torch.zeros((rows, width), dtype=dtype, device=device)


class PlainEntries:
    """Entries as bfloat16 [rows, D]."""

    def __init__(self, rows: int, D: int, rope: int, device: torch.device | str) -> None:
        self.values = _zeros(rows, D, torch.bfloat16, device)
        self.tensors = (self.values,)

    def write(self, rows: Tensor, entries: Tensor) -> None:
        """Put entries (bfloat16 or float32 [n, D]) into rows (int64 [n])."""
        self.values.index_copy_(0, rows, entries.to(torch.bfloat16))

    def read(self, rows: Tensor | slice) -> Tensor:
        """bfloat16 [n, D]; of a slice, the storage itself."""
        return self.values[rows]


class MicroscaledEntries:
    """The channels that are not rotary as MXFP8 (E4M3, a scale per 32), the rotary ones as bfloat16."""

    def __init__(self, rows: int, D: int, rope: int, device: torch.device | str) -> None:
        self.plain = D - rope
        # Bytes: torch copies rows of bytes on every device, and of float8 not on all.
        self.codes = _zeros(rows, self.plain, torch.uint8, device)
        self.scale = _zeros(rows, self.plain // BLOCK, torch.uint8, device)
        self.rotary = _zeros(rows, rope, torch.bfloat16, device)
        self.tensors = (self.codes, self.scale, self.rotary)

    def write(self, rows: Tensor, entries: Tensor) -> None:
        """As :meth:`PlainEntries.write`, rounding."""
        codes, scale = quantize_mxfp8(entries[:, : self.plain].contiguous())
        self.codes.index_copy_(0, rows, codes.view(torch.uint8))
        self.scale.index_copy_(0, rows, scale.view(torch.uint8))
        self.rotary.index_copy_(0, rows, entries[:, self.plain :].to(torch.bfloat16))

    def read(self, rows: Tensor | slice) -> Tensor:
        """bfloat16 [n, D], the stored values exactly."""
        # A scale's byte is its exponent field: 255, NaN to a block of zeros, becomes infinity times zero.
        scale = (self.scale[rows].to(torch.int32) << 23).view(torch.float32)
        codes = self.codes[rows].view(torch.float8_e4m3fn).to(torch.float32)
        values = codes.view(*scale.shape, BLOCK) * scale[..., None]
        return torch.cat((values.view(codes.shape).to(torch.bfloat16), self.rotary[rows]), -1)


class Keys:
    """Indexer keys as MXFP4: E2M1 [rows, D / 2] and E8M0 scales [rows, D / 32]."""

    def __init__(self, rows: int, D: int, device: torch.device | str) -> None:
        self.packed = _zeros(rows, D // 2, torch.uint8, device)
        self.scale = _zeros(rows, D // BLOCK, torch.uint8, device)
        self.tensors = (self.packed, self.scale)

    def write(self, rows: Tensor, keys: Tensor) -> None:
        """Put keys (bfloat16 or float32 [n, D]) into rows (int64 [n])."""
        packed, scale = quantize_mxfp4(keys)
        self.packed.index_copy_(0, rows, packed.view(torch.uint8))
        self.scale.index_copy_(0, rows, scale.view(torch.uint8))
