"""A layer takes no more memory than it states, and its weights 4.25 bits per parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moe_data import EXPERTS, HIDDEN, INTER, LIMIT, choices, layer

import kernelforge as kf
from kernelforge.bench import peak_memory
from kernelforge.ops.mega_moe.benchmark import stated_bytes

SLOTS = 3


def test_weights_take_4_25_bits_per_parameter():
    weights = layer(np.random.default_rng(0))
    assert sum(array.nbytes for array in weights) * 8 == 4.25 * EXPERTS * 3 * HIDDEN * INTER


@pytest.mark.parametrize("tokens", [10_000, 30_000])
def test_peak_memory_is_within_what_is_stated(tokens):
    """At sizes beside which what the process takes for other reasons is small."""
    draw = np.random.default_rng(1)
    weights = [torch.from_numpy(array) for array in layer(draw)]
    x = torch.from_numpy(draw.standard_normal((tokens, HIDDEN)).astype(np.float32)).bfloat16()
    chosen = torch.from_numpy(choices(draw, tokens, SLOTS, EXPERTS, dropped=0.0))
    weight = torch.from_numpy(draw.random((tokens, SLOTS)).astype(np.float32))
    rise = peak_memory(lambda: kf.mega_moe(x, chosen, weight, *weights, None, swiglu_limit=LIMIT))
    if rise is None:
        pytest.skip("this system does not tell a process its peak")
    stated = stated_bytes(tokens, SLOTS, HIDDEN, INTER)
    assert 0.5 * stated < rise < stated + (1 << 20)
