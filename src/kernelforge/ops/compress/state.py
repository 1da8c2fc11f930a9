"""What a compressed sequence carries from one call to the next."""

from __future__ import annotations

from typing import NamedTuple

import torch


class CompressState(NamedTuple):
    """The unfinished window of each sequence, with overlap also the series a of the window before, and the position.

    The tensors are updated in place by :func:`kernelforge.csa_compress` and :func:`kernelforge.hca_compress`; ``clone``
    first where a sequence branches. Row ``s`` of ``kv`` and ``gate`` holds the tokens at positions congruent to ``s``
    modulo the ratio. Rows past the position hold whatever was there before (in a new state, whatever memory held) and
    are never read.

    Attributes:
        kv, gate: as they were fed, in their type: [B, ratio, 3 * D] with overlap (columns: series a of the window
            before, series a of the unfinished window, its series b), [B, ratio, D] without.
        position: int32 [B], the number of tokens fed so far; ``position // ratio`` entries have been returned.
    """

    kv: torch.Tensor
    gate: torch.Tensor
    position: torch.Tensor

    @classmethod
    def start(
        cls, batch: int, ratio: int, D: int, overlap: bool, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> CompressState:
        """The state of ``batch`` sequences that have not begun."""
        shape = (batch, ratio, 3 * D if overlap else D)
        kv = torch.empty(shape, dtype=dtype, device=device)
        return cls(kv, torch.empty_like(kv), torch.zeros(batch, dtype=torch.int32, device=device))

    def clone(self) -> CompressState:
        """A copy that shares no memory."""
        return CompressState(*(tensor.clone() for tensor in self))

    def rows(self, first: int, last: int) -> CompressState:
        """The sequences from ``first`` to before ``last``, in the same memory: calls with it update this state too."""
        return CompressState(*(tensor[first:last] for tensor in self))

    def select(self, index: torch.Tensor) -> CompressState:
        """The sequences at ``index`` (int64 [n]), copied: beam search, batches that change their members."""
        return CompressState(*(tensor.index_select(0, index) for tensor in self))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self)
