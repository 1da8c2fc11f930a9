"""Compression agrees with transformers' DeepSeek-V4 compressors, in one call and through their cache."""

from __future__ import annotations

import pytest
import torch
from transformers.models.deepseek_v4 import configuration_deepseek_v4, modeling_deepseek_v4

import kernelforge as kf

HIDDEN, D, ROPE, S = 64, 64, 32, 27


def compressor(overlap: bool, dtype: torch.dtype):
    torch.manual_seed(0)
    config = configuration_deepseek_v4.DeepseekV4Config(
        hidden_size=HIDDEN,
        head_dim=D,
        num_hidden_layers=2,
        num_attention_heads=2,
        q_lora_rank=32,
        index_n_heads=2,
        index_head_dim=32,
        index_topk=4,
        partial_rotary_factor=ROPE / D,
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        max_position_embeddings=256,
    )
    kind = "DeepseekV4CSACompressor" if overlap else "DeepseekV4HCACompressor"
    module = getattr(modeling_deepseek_v4, kind)(config)
    for name, parameter in module.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    module = module.to(dtype)
    module.position_bias.data = module.position_bias.data.float()
    module.kv_norm.float()
    return module


def ours(module, hidden: torch.Tensor, overlap: bool, state=None):
    positions = torch.arange(S)[None]
    cos, sin = module.rotary_emb(hidden.float(), position_ids=positions, layer_type="compress")
    compress = kf.csa_compress if overlap else kf.hca_compress
    return compress(
        module.kv_proj(hidden),
        module.gate_proj(hidden),
        module.position_bias.detach(),
        module.kv_norm.weight.detach(),
        cos[0].contiguous(),
        sin[0].contiguous(),
        ratio=module.compress_rate,
        eps=module.kv_norm.variance_epsilon,
        state=state,
    )


# transformers rounds the weights, each product, their sum and the normalized entry to bfloat16: four roundings of 2^-9.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4 * 2.0**-9)])
@pytest.mark.parametrize("overlap", [True, False], ids=["csa", "hca"])
def test_entries_agree(overlap, dtype, tolerance):
    module = compressor(overlap, dtype)
    hidden = torch.randn(2, S, HIDDEN, dtype=dtype)
    residual = torch.randn(2, S, 32, dtype=dtype)
    with torch.no_grad():
        theirs = module(hidden, residual, torch.arange(S)[None].expand(2, -1), None, 0)[0][:, 0]
        found, _ = ours(module, hidden, overlap)
    assert found.shape == theirs.shape
    scale = theirs.float().abs().max()
    assert (found.float() - theirs.float()).abs().max() <= tolerance * scale


@pytest.mark.parametrize("overlap", [True, False], ids=["csa", "hca"])
def test_pieces_agree_with_their_cache(overlap):
    module = compressor(overlap, torch.float32)
    hidden = torch.randn(1, S, HIDDEN)
    kind = "DeepseekV4CSACache" if overlap else "DeepseekV4HCACache"
    config = configuration_deepseek_v4.DeepseekV4Config(
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}, head_dim=D
    )
    layer = getattr(modeling_deepseek_v4, kind)(config)
    cache = type("Cache", (), {"layers": [layer]})()
    state, found = None, []
    with torch.no_grad():
        for start, end in ((0, 5), (5, 6), (6, 20), (20, S)):
            positions = torch.arange(start, end)[None]
            residual = torch.randn(1, end - start, 32)
            theirs = module(hidden[:, start:end], residual, positions, cache, 0)[0][:, 0]
            entries, state = ours(module, hidden[:, start:end].contiguous(), overlap, state)
            found.append(entries)
    together = torch.cat(found, 1)
    assert together.shape == theirs.shape
    assert (together - theirs).abs().max() <= 2e-6 * theirs.abs().max()
