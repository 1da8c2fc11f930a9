"""Bytes and operations per token of whole models, from their published shapes.

Counted are multiply-adds (as two operations) of one decoded token at a context of n tokens: one per activated weight,
and those of attention and indexer with the cache. Operations of every precision count the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..cache import entry_bytes

V32_KV_BYTES = 512 + 4 * 4 + 2 * 64
"""DeepSeek-V3.2's FP8 cache entry: 512 latent E4M3 channels, four fp32 scales, 64 rotary bfloat16 channels."""
V32_KEY_BYTES = 128 + 4
"""Its indexer key: 128 E4M3 channels and an fp32 scale."""


@dataclass(frozen=True)
class Model:
    """A model's attention.

    Attributes:
        name: for the report.
        activated: weights used for a token.
        layers: number of (CSA, HCA, sliding-window) layers of V4, or (sparse,) layers of V3.2.
        heads, index_heads, topk: of attention and indexer.
        published_cache, published_operations: shares of V3.2's at a million tokens.
    """

    name: str
    activated: float
    layers: tuple[int, ...]
    heads: int
    index_heads: int
    topk: int
    published_cache: float
    published_operations: float

    D = 512
    rope = 64
    index_channels = 128
    window = 128
    ratios = (4, 128)

    def cache_bytes(self, context: int, storage: str = "float8_e4m3fn") -> float:
        """Bytes of one sequence's cache without the constant windows and states."""
        csa, hca, *_ = self.layers
        sparse = entry_bytes(self.D, self.rope, storage, self.index_channels) * (context // self.ratios[0])
        dense = entry_bytes(self.D, self.rope, storage) * (context // self.ratios[1])
        return csa * sparse + hca * dense

    def operations(self, context: int) -> float:
        """Operations of one decoded token."""
        csa, hca, sliding = self.layers
        compressed = context // self.ratios[0]
        index = 2.0 * self.index_heads * self.index_channels * compressed
        per_entry = 4.0 * self.heads * self.D
        sparse = per_entry * (min(self.topk, compressed) + min(self.window, context))
        dense = per_entry * (context // self.ratios[1] + min(self.window, context))
        alone = per_entry * min(self.window, context)
        return 2 * self.activated + csa * (index + sparse) + hca * dense + sliding * alone


@dataclass(frozen=True)
class Baseline(Model):
    """DeepSeek-V3.2: latent attention to 2048 tokens that an indexer chooses among all."""

    def cache_bytes(self, context: int, storage: str = "float8_e4m3fn") -> float:
        """Bytes of one sequence's cache; ``storage`` "bfloat16" is the latent one in bfloat16."""
        kv = V32_KV_BYTES if storage != "bfloat16" else 2 * (512 + 64)
        return float(self.layers[0] * (kv + V32_KEY_BYTES) * context)

    def operations(self, context: int) -> float:
        """Operations of one decoded token: 576 channels for the score and 512 for the value per chosen token."""
        index = 2.0 * self.index_heads * self.index_channels * context
        chosen = 2.0 * self.heads * (576 + 512) * min(self.topk, context)
        return 2 * self.activated + self.layers[0] * (index + chosen)


V32 = Baseline("DeepSeek-V3.2", 37e9, (61,), 128, 64, 2048, 1.0, 1.0)
PRO = Model("DeepSeek-V4-Pro", 49e9, (30, 31, 0), 128, 64, 1024, 0.10, 0.27)
FLASH = Model("DeepSeek-V4-Flash", 13e9, (21, 20, 2), 64, 64, 512, 0.07, 0.10)
MODELS = (V32, PRO, FLASH)
CONTEXTS = tuple(1 << bits for bits in (12, 14, 16, 18, 20))
