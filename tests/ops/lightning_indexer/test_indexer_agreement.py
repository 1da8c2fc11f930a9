"""The indexer chooses what others' implementations choose, and finds what is there to be found."""

from __future__ import annotations

import pytest
import torch
from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4IndexerScorer

import kernelforge as kf

DEPTH, RATIO = 64, 4


def quantized(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed FP4, its scales, and its values."""
    packed, scale = kf.quantize_mxfp4(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    return packed, scale, kf.dequantize_mxfp4(packed, scale)


def test_scores_and_choice_of_the_transformers_indexer():
    config = DeepseekV4Config(hidden_size=96, index_n_heads=8, index_head_dim=DEPTH, index_topk=16)
    torch.manual_seed(0)
    scorer = DeepseekV4IndexerScorer(config)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    B, S, T = 2, 40, 10
    q, q_scale, q_values = quantized((B, S, config.index_n_heads, DEPTH), 1)
    k, k_scale, k_values = quantized((B, T, DEPTH), 2)
    hidden = torch.randn(B, S, config.hidden_size)
    with torch.no_grad():
        theirs = scorer(q_values, k_values, hidden)
        weights = scorer.weights_proj(hidden).float() * (config.index_n_heads * DEPTH) ** -0.5
    seen = ((torch.arange(S, dtype=torch.int32) + 1) // RATIO).expand(B, S).contiguous()
    ours = kf.indexer_logits(q, q_scale, k, k_scale, weights, out_dtype=torch.float32)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)

    masked = theirs.masked_fill(torch.arange(T) >= seen[..., None], float("-inf"))
    index, scores = kf.lightning_indexer(q, q_scale, k, k_scale, weights, 6, seen, return_scores=True)
    wanted = masked.topk(6).values
    # The choice may differ only among scores that bfloat16 does not tell apart.
    torch.testing.assert_close(scores.float(), wanted.float(), rtol=2**-8, atol=1e-6)
    assert ((index >= 0).sum(-1) == seen.clamp(max=6)).all()


def needle(entries: int, position: int) -> torch.Tensor:
    """The first choices of queries among keys of noise, one of which is what the queries ask for."""
    draw = torch.Generator().manual_seed(position)
    k, k_scale = kf.quantize_mxfp4(torch.randn(entries, DEPTH, generator=draw))
    wanted = torch.randn(DEPTH, generator=draw)
    q, q_scale = kf.quantize_mxfp4(wanted.expand(1, 8, DEPTH).contiguous())
    k[position], k_scale[position] = (x[0] for x in kf.quantize_mxfp4(wanted[None]))
    return kf.lightning_indexer(q, q_scale, k, k_scale, torch.full((1, 8), 0.05), 12)[0]


@pytest.mark.parametrize("position", [0, 4095, 4096, 12345, 20000 - 1])
def test_the_needle_is_found_in_20_thousand_entries(position):
    assert needle(20000, position)[0] == position


@pytest.mark.slow
@pytest.mark.parametrize("position", [0, 1, 777_777, (1 << 20) - 1])
def test_the_needle_is_found_in_a_million_entries(position):
    assert needle(1 << 20, position)[0] == position


@pytest.mark.slow
def test_memory_does_not_grow_with_the_entries():
    from kernelforge.bench import peak_memory

    k, k_scale, _ = quantized((1 << 18, DEPTH), 1)
    q, q_scale, _ = quantized((4, 16, DEPTH), 2)
    weights = torch.ones(4, 16)
    grown = peak_memory(lambda: kf.lightning_indexer(q, q_scale, k, k_scale, weights, 12))
    if grown is None:
        pytest.skip("peak memory cannot be read here")
    assert grown < 4 << 20, "4 x 262144 float32 scores alone are 4 MiB"
