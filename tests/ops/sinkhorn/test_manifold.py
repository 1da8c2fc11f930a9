"""What the manifold promises, for the matrices that kf.sinkhorn makes.

Twenty iterations bring rows within 1e-5 of one while logits stay within one of each other's mean, where trained models
keep them; beyond, columns still sum to one, and float64 does not converge further either.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import kernelforge as kf
from kernelforge.ops.sinkhorn import eager

ROWS, COLUMNS = -1, -2


def logits(bound: float, tokens: int = 24):
    finite = st.floats(-bound, bound, width=32)
    return arrays.arrays(np.float32, (tokens, 4, 4), elements=finite)


def sums(m: torch.Tensor, axis: int) -> torch.Tensor:
    return m.double().sum(axis)


@settings(deadline=None, max_examples=150)
@given(x=logits(1.0))
def test_doubly_stochastic(x):
    m = kf.sinkhorn(torch.from_numpy(x))
    assert (m > 0).all()
    for axis in (ROWS, COLUMNS):
        assert (sums(m, axis) - 1).abs().max() < 1e-5


@settings(deadline=None, max_examples=150)
@given(x=logits(1.0))
def test_non_expansive(x):
    m = kf.sinkhorn(torch.from_numpy(x)).double()
    assert torch.linalg.matrix_norm(m, 2).max() <= 1 + 1e-6


@settings(deadline=None, max_examples=40)
@given(x=logits(1.0, tokens=100), seed=st.integers(0, 2**32 - 1))
def test_products_of_a_hundred_layers_stay_on_the_manifold(x, seed):
    m = kf.sinkhorn(torch.from_numpy(x)).double()
    start = torch.from_numpy(np.random.default_rng(seed).standard_normal((4, 16)))
    product, streams = torch.eye(4, dtype=torch.float64), start
    for layer in m:
        product, streams = layer.T @ product, layer.T @ streams
    assert torch.linalg.matrix_norm(product, 2) <= 1 + 1e-6
    for axis in (ROWS, COLUMNS):
        assert (sums(product, axis) - 1).abs().max() < 5e-4
    assert streams.norm() <= start.norm() * (1 + 1e-6)


@settings(deadline=None, max_examples=150)
@given(x=logits(200.0))
def test_columns_sum_to_one_whatever_the_logits(x):
    m = kf.sinkhorn(torch.from_numpy(x))
    assert (m > 0).all()
    assert (sums(m, COLUMNS) - 1).abs().max() < 1e-5
    # The norm is at most the root of the largest row sum times the largest column sum.
    bound = (sums(m, ROWS).amax(-1) * sums(m, COLUMNS).amax(-1)).sqrt()
    assert (torch.linalg.matrix_norm(m.double(), 2) <= bound * (1 + 1e-6)).all()


@settings(deadline=None, max_examples=100)
@given(x=logits(20.0))
def test_as_close_to_the_manifold_as_float64(x):
    m = kf.sinkhorn(torch.from_numpy(x))
    wide = eager.sinkhorn(torch.from_numpy(x).double())
    assert (m - wide).abs().max() < 1e-5


@pytest.mark.parametrize("n", [3, 4])
def test_equal_logits_mix_evenly(n):
    m = kf.sinkhorn(torch.full((1, n, n), 3.0), 20 if n == 4 else 3)
    assert torch.allclose(m, torch.full_like(m, 1 / n), atol=1e-6)
