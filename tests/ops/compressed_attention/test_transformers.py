"""CSA and HCA attention agree with the attention layer of transformers' DeepSeek-V4."""

from __future__ import annotations

import pytest
import torch
from transformers.models.deepseek_v4 import configuration_deepseek_v4, modeling_deepseek_v4

import kernelforge as kf

HIDDEN, H, D, ROPE, S, WINDOW, RATIO, TOPK = 64, 4, 64, 32, 45, 16, 8, 6
LAYERS = ["compressed_sparse_attention", "heavily_compressed_attention"]


def attention_layer(kind: str):
    torch.manual_seed(0)
    config = configuration_deepseek_v4.DeepseekV4Config(
        hidden_size=HIDDEN,
        head_dim=D,
        num_hidden_layers=1,
        num_attention_heads=H,
        q_lora_rank=32,
        o_groups=2,
        o_lora_rank=16,
        index_n_heads=2,
        index_head_dim=32,
        index_topk=TOPK,
        sliding_window=WINDOW,
        layer_types=[kind],
        partial_rotary_factor=ROPE / D,
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": RATIO},
        max_position_embeddings=256,
        attn_implementation="eager",
    )
    layer = modeling_deepseek_v4.DeepseekV4Attention(config, 0)
    for name, parameter in layer.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    rotary = modeling_deepseek_v4.DeepseekV4RotaryEmbedding(config)
    return layer.eval(), rotary


@pytest.mark.parametrize("kind", LAYERS)
def test_agrees_with_the_attention_layer(kind, monkeypatch):
    """Their window and block masks, sinks and rotation back, on their own keys rounded to bfloat16."""
    layer, rotary = attention_layer(kind)
    seen = {}

    def rounded(module, query, key, value, mask, **options):
        query, key = query.bfloat16(), key.bfloat16()
        seen.update(q=query, keys=key, mask=mask)
        return theirs(module, query.float(), key.float(), key.float(), mask, **options)

    theirs = modeling_deepseek_v4.eager_attention_forward
    monkeypatch.setattr(modeling_deepseek_v4, "eager_attention_forward", rounded)
    layer.o_a_proj.register_forward_pre_hook(lambda module, inputs: seen.update(out=inputs[0]))
    hidden, positions = torch.randn(2, S, HIDDEN), torch.arange(S)[None].expand(2, -1).contiguous()
    angles = {name: rotary(hidden, position_ids=positions, layer_type=name) for name in ("main", "compress")}
    distance = positions[0][:, None] - positions[0]
    mask = torch.where((distance >= 0) & (distance < WINDOW), 0.0, float("-inf"))[None, None].expand(2, 1, -1, -1)
    with torch.no_grad():
        layer(hidden, angles, positions, mask)
    q, kv = seen["q"].transpose(1, 2).contiguous(), seen["keys"][:, 0, :S].contiguous()
    entries, sinks = seen["keys"][:, 0, S:].contiguous(), layer.sinks.detach()
    cos, sin = (x.contiguous() for x in angles["compress"])
    known = seen["mask"][:, 0, :, S:] == 0
    if kind == LAYERS[1]:
        out = kf.hca_attention(q, kv, entries, sinks, positions, WINDOW, ratio=RATIO, cos=cos, sin=sin)
    else:
        index = torch.arange(known.shape[-1], dtype=torch.int32)
        chosen = torch.where(known, index, -1).sort(-1, descending=True).values[..., :TOPK].contiguous()
        assert int(known.sum(-1).max()) == TOPK
        out = kf.csa_attention(q, kv, entries, chosen, sinks, positions, WINDOW, cos=cos, sin=sin)
    expected = seen["out"].reshape(2, S, H, D)
    # Beside our rounding to bfloat16 nothing is left.
    assert (out.float() - expected).abs().max() <= 2.0**-8 * expected.abs().max()
