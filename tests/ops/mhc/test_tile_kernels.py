"""Agreement with the torch references of DeepSeek's ``tile-kernels``, within torch's tolerances for each type."""

from __future__ import annotations

import importlib.util
from importlib.metadata import distribution

import pytest
import torch

import kernelforge as kf

B, S, C = 2, 5, 64
EPS = 1e-6


@pytest.fixture(scope="module")
def theirs():
    """Their references alone: the package itself wants a GPU when it is imported."""
    path = distribution("tile-kernels").locate_file("tile_kernels/torch/mhc.py")
    spec = importlib.util.spec_from_file_location("tile_kernels_mhc", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("iters", [1, 20])
def test_sinkhorn_agrees(theirs, n, iters):
    logits = normal(7, n, n, seed=n)
    torch.testing.assert_close(kf.sinkhorn(logits, iters, EPS), theirs.sinkhorn_normalize_ref(logits, iters, EPS))


@pytest.mark.parametrize("n", [2, 4])
def test_pre_and_post_agree(theirs, n):
    streams = normal(B, S, n, C, seed=1, dtype=torch.bfloat16)
    fn = normal(n * (n + 2), n * C, seed=2) / (n * C) ** 0.5
    scale, base = normal(3, seed=3), normal(n * (n + 2), seed=4)
    collapsed, post, comb = kf.mhc_pre(streams, fn, scale, base, iters=20, eps=EPS, norm_eps=EPS)

    mixes = theirs.mhc_pre_norm_fn_ref(streams, fn, None, EPS)
    pre, their_post, logits = theirs.mhc_pre_split_mixes_ref(mixes, scale, base, n, 2.0, EPS)
    torch.testing.assert_close(post, their_post.squeeze(-1))
    torch.testing.assert_close(comb, theirs.sinkhorn_normalize_ref(logits, 20, EPS))
    torch.testing.assert_close(collapsed, theirs.mhc_pre_apply_mix_ref(streams.float(), pre))

    y = normal(B, S, C, seed=5, dtype=torch.bfloat16)
    wanted = theirs.mhc_post_ref(y, streams, post.unsqueeze(-1), comb)
    torch.testing.assert_close(kf.mhc_post(y, streams, post, comb), wanted)


def test_head_agrees(theirs):
    n = 4
    streams = normal(B, S, n, C, seed=6, dtype=torch.bfloat16)
    fn, scale, base = normal(n, n * C, seed=7) / (n * C) ** 0.5, normal(1, seed=8), normal(n, seed=9)
    mixes = theirs.mhc_head_compute_mix_ref(theirs.mhc_pre_norm_fn_ref(streams, fn, None, EPS), scale, base, EPS)
    wanted = theirs.mhc_pre_apply_mix_ref(streams.float(), mixes.unsqueeze(-1))
    torch.testing.assert_close(kf.mhc_head(streams, fn, scale, base, eps=EPS, norm_eps=EPS), wanted)
