"""Buffers that are allocated once and used again: a call in steady state allocates none."""

from __future__ import annotations

import torch


class Buffers:
    """Tensors by name. A tensor is valid until its name is taken again; a larger one is made when it must be."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: dict[str, torch.Tensor] = {}

    def take(self, name: str, rows: int, row_bytes: int) -> torch.Tensor:
        """Uninitialized bytes, uint8 [rows, row_bytes]."""
        wanted = rows * row_bytes
        held = self._held.get(name)
        if held is None or held.numel() < wanted:
            held = torch.empty(wanted + wanted // 4, dtype=torch.uint8, device=self._device)
            self._held[name] = held
        return held[:wanted].view(rows, row_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.numel() for tensor in self._held.values())
