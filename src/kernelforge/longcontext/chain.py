"""One attention layer from projected tokens to the hidden size: compress, index, select, attend, project.

The layer's inputs are what a model's projections of hidden states would give; here they are drawn at random. Weights
too. It exists to be measured and to be fed in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..cache import CompressedKV
from ..ops.compress.op import csa_compress, hca_compress
from ..ops.compress.state import CompressState
from ..ops.compressed_attention.op import csa_attention, hca_attention
from ..ops.grouped_projection.op import grouped_output_projection
from ..ops.lightning_indexer.op import lightning_indexer
from ..ops.mx_quantize.op import quantize_mxfp4

Tensor = torch.Tensor
PARTS = ("compress", "cache", "index and select", "attend", "project")


@dataclass(frozen=True)
class Shape:
    """A layer's extents; ``topk`` 0 is HCA, without an indexer."""

    name: str
    ratio: int
    topk: int
    heads: int = 64
    D: int = 512
    rope: int = 64
    window: int = 128
    index_heads: int = 64
    index_channels: int = 128
    groups: int = 8
    rank: int = 1024
    hidden: int = 4096


CSA = Shape("CSA", 4, 512)
HCA = Shape("HCA", 128, 0)
"""Layers of DeepSeek-V4-Flash."""


@dataclass(frozen=True)
class Piece:
    """Projections of S tokens of B sequences: compressor, raw entries, queries, and the indexer's of each with CSA."""

    kv: Tensor
    gate: Tensor
    raw: Tensor
    q: Tensor
    index_kv: Tensor
    index_gate: Tensor
    index_q: Tensor
    index_weights: Tensor

    def cut(self, first: int, last: int) -> Piece:
        """Tokens ``first`` to before ``last``."""
        return Piece(*(x[:, first:last].contiguous() for x in vars(self).values()))


class Layer:
    """Weights and rotation table of a layer for up to ``positions`` tokens, drawn from ``seed``."""

    def __init__(self, shape: Shape, positions: int, seed: int = 0, device: str = "cpu") -> None:
        self.shape, self.positions, self.device = shape, positions, torch.device(device)
        self._draw = torch.Generator().manual_seed(seed)
        x = shape
        angles = torch.outer(torch.arange(positions), 10000.0 ** (-torch.arange(x.rope // 2) / (x.rope // 2)))
        self.cos, self.sin = angles.cos().to(device), angles.sin().to(device)
        series = self.series
        self.bias, self.norm = self._normal(x.ratio, series * x.D), 1 + self._normal(x.D) / 8
        self.index_bias, self.index_norm = (
            self._normal(x.ratio, series * x.index_channels),
            1 + self._normal(x.index_channels) / 8,
        )
        self.sink = self._normal(x.heads)
        K = x.heads // x.groups * x.D
        self.wa, self.wa_scale = quantize_mxfp4(self._normal(x.groups, x.rank, K) * K**-0.5)
        wide = x.groups * x.rank
        self.wb, self.wb_scale = quantize_mxfp4(self._normal(x.hidden, wide) * wide**-0.5)

    @property
    def series(self) -> int:
        """Series of channels that the compressor takes."""
        return 2 if self.shape.topk else 1

    def _normal(self, *extents: int) -> Tensor:
        return torch.randn(extents, generator=self._draw).to(self.device)

    def piece(self, batch: int, S: int) -> Piece:
        """Projections of S tokens, normal."""
        x, of = self.shape, lambda *extents: self._normal(batch, S, *extents)
        index = x.index_heads if x.topk else 0
        return Piece(
            of(self.series * x.D).bfloat16(),
            of(self.series * x.D).bfloat16(),
            of(x.D).bfloat16(),
            of(x.heads, x.D).bfloat16(),
            of(2 * x.index_channels).bfloat16(),
            of(2 * x.index_channels).bfloat16(),
            of(index, x.index_channels).bfloat16(),
            of(index).abs(),
        )

    def cache(self, batch: int, capacity: int, storage: str = "bfloat16", page: int | None = None) -> CompressedKV:
        """An empty cache for this layer."""
        x = self.shape
        return CompressedKV(
            batch,
            capacity,
            x.D,
            x.rope,
            x.ratio,
            overlap=bool(x.topk),
            window=x.window,
            storage=storage,
            index_D=x.index_channels if x.topk else 0,
            page=page,
            device=self.device,
        )

    def fill(self, cache: CompressedKV, tokens: int) -> None:
        """As if every sequence of an empty cache had been fed so many tokens: random entries, keys and states.

        Entries and keys repeat after 4096.
        """
        x, S = self.shape, 4096 * self.shape.ratio
        entries = self._normal(cache.batch, 4096, x.D).bfloat16()
        keys = self._normal(cache.batch, 4096, x.index_channels) if x.topk else None
        raw = self._normal(cache.batch, 1, x.D).bfloat16()
        for first in range(0, tokens, S):
            more = min(S, tokens - first)
            n = (first + more) // x.ratio - cache.counts[0]
            of_piece = None if keys is None else keys[:, :n].contiguous()
            cache.append(raw.expand(-1, more, -1).contiguous(), entries[:, :n].contiguous(), of_piece)
        for state in (cache.state, cache.index_state):
            if state is not None:
                state.kv.normal_()
                state.gate.normal_()
                state.position.fill_(tokens)

    def feed(
        self,
        cache: CompressedKV,
        piece: Piece,
        lengths: Tensor | None = None,
        backend: str | None = None,
        done: Callable[[str], object] = lambda part: None,
    ) -> Tensor:
        """Take the next tokens of every sequence through the layer.

        Args:
            cache: of this layer; the tokens are added to it.
            piece: the tokens, [B, S].
            lengths: int32 [B], how many of them each sequence gets; None for all.
            backend: as in every op.
            done: called with the name of every part (``PARTS``) when it is over.

        Returns:
            bfloat16 [B, S, hidden]; rows beyond ``lengths`` have no meaning.
        """
        x, S = self.shape, piece.raw.shape[1]
        shared: dict[str, Any] = {"ratio": x.ratio, "lengths": lengths, "backend": backend}

        def compressed(kv: Tensor, gate: Tensor, bias: Tensor, norm: Tensor, state: CompressState) -> Tensor:
            op = csa_compress if x.topk else hca_compress
            found, _ = op(kv, gate, bias, norm, self.cos, self.sin, state=state, **shared)
            return found

        entries = compressed(piece.kv, piece.gate, self.bias, self.norm, cache.state)
        keys = None
        if cache.index_state is not None:
            keys = compressed(piece.index_kv, piece.index_gate, self.index_bias, self.index_norm, cache.index_state)
        done("compress")
        positions = cache.positions(S, lengths)
        raw, kv_start = cache.with_window(piece.raw)
        cache.append(piece.raw, entries, keys, lengths)
        done("cache")
        chosen = None
        if x.topk:
            q, q_scale = quantize_mxfp4(piece.index_q, backend=backend)
            visible = (positions + 1) // x.ratio
            weights = piece.index_weights
            chosen = lightning_indexer(q, q_scale, *cache.index_keys(), weights, x.topk, visible, backend=backend)
            done("index and select")
        at = cache.attended(chosen)
        places = positions.clamp(min=0).to(torch.int64)
        options: dict[str, Any] = {
            "kv_start": kv_start,
            "block_table": at.block_table,
            "cos": self.cos[places],
            "sin": self.sin[places],
            "backend": backend,
        }
        if at.indices is not None:
            out = csa_attention(piece.q, raw, at.entries, at.indices, self.sink, positions, x.window, **options)
        else:
            out = hca_attention(piece.q, raw, at.entries, self.sink, positions, x.window, ratio=x.ratio, **options)
        done("attend")
        result = grouped_output_projection(out, self.wa, self.wb, self.wa_scale, self.wb_scale, backend=backend)
        done("project")
        return result
