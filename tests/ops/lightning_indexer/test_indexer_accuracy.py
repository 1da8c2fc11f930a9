"""Logits against float64: never worse than torch in bfloat16, on data of every kind."""

from __future__ import annotations

import pytest
import torch
from indexer_data import values_of_kind

import kernelforge as kf

LIMITS = {"normal": 2e-5, "student": 4e-5, "outliers": 2e-5, "crossed_outliers": 4e-3}
"""Largest error of bfloat16 operands' float32 logits. ``outliers``: four channels of queries and keys are a hundred
times as large; ``crossed_outliers``: others in queries than in keys, so that what one row's exponent leaves of its
small channels meets the other's large ones."""


def oracle(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Scores in float64."""
    positive = torch.einsum("shd,td->sht", q.double(), k.double()).relu()
    return torch.einsum("sht,sh->st", positive, weights.double())


def error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root mean square, relative to that of the scores."""
    return float((given.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.parametrize("kind", LIMITS)
def test_bfloat16_logits_are_closer_to_float64_than_torch_in_bfloat16(kind):
    q, k, weights = values_of_kind(kind)
    wanted = oracle(q, k, weights)
    customary = (weights.bfloat16()[:, None] @ (q.flatten(0, 1) @ k.T).relu().view(*q.shape[:2], len(k))).squeeze(1)
    exact = error(kf.indexer_logits(q, None, k, None, weights, out_dtype=torch.float32), wanted)
    rounded = error(kf.indexer_logits(q, None, k, None, weights), wanted)
    assert exact < LIMITS[kind]
    assert rounded < error(customary, wanted)


@pytest.mark.parametrize("kind", LIMITS)
def test_fp4_logits_are_exact_but_for_float32_sums(kind):
    q, k, weights = values_of_kind(kind)
    (q4, q_scale), (k4, k_scale) = kf.quantize_mxfp4(q), kf.quantize_mxfp4(k)
    values = (kf.dequantize_mxfp4(q4, q_scale), kf.dequantize_mxfp4(k4, k_scale))
    wanted = oracle(*values, weights)
    logits = kf.indexer_logits(q4, q_scale, k4, k_scale, weights, out_dtype=torch.float32)
    q2, k2 = (x.bfloat16() for x in values)
    customary = (weights.bfloat16()[:, None] @ (q2.flatten(0, 1) @ k2.T).relu().view(*q.shape[:2], len(k))).squeeze(1)
    assert error(logits, wanted) < 1e-6
    assert error(kf.indexer_logits(q4, q_scale, k4, k_scale, weights), wanted) < error(customary, wanted)
