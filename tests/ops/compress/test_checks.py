"""What is wrong with a call of the compressors is said: the argument, what was given, what is wanted."""

from __future__ import annotations

import pytest
import torch

import kernelforge as kf

B, S, D, RATIO = 2, 8, 32, 4


def arguments(**changes):
    base = {
        "kv": torch.zeros(B, S, 2 * D),
        "gate": torch.zeros(B, S, 2 * D),
        "position_bias": torch.zeros(RATIO, 2 * D),
        "norm_weight": torch.ones(D),
        "cos": torch.ones(S, 8),
        "sin": torch.zeros(S, 8),
        "ratio": RATIO,
    }
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"kv": None}, TypeError, "kv: a torch.Tensor is wanted, given NoneType"),
        ({"kv": torch.zeros(B, S, 2 * D).half()}, TypeError, "kv: given float16.*wanted float32 or bfloat16"),
        (
            {"kv": torch.zeros(B, S, 2 * D, 1)},
            ValueError,
            r"kv: given float32\[2, 8, 64, 1\].*wanted.*\[B, S, 2 \* D\]",
        ),
        ({"kv": torch.zeros(B, S, 80)}, ValueError, r"kv: given float32\[2, 8, 80\].*D a positive multiple of 32"),
        ({"kv": torch.zeros(B, 2 * D, S).mT}, ValueError, r"kv: .*contiguous"),
        ({"gate": torch.zeros(B, S, 2 * D).bfloat16()}, TypeError, "gate: given bfloat16.*wanted float32"),
        (
            {"gate": torch.zeros(B, S + 1, 2 * D)},
            ValueError,
            r"gate: given float32\[2, 9, 64\].*wanted float32\[2, 8, 64\]",
        ),
        ({"position_bias": torch.zeros(5, 2 * D)}, ValueError, r"position_bias: given.*wanted float32\[4, 64\]"),
        ({"norm_weight": torch.ones(2 * D)}, ValueError, r"norm_weight: given.*wanted float32\[32\]"),
        ({"cos": torch.ones(S, 17)}, ValueError, "cos: given.*1 to 16 angles"),
        ({"cos": torch.ones(3, 8), "sin": torch.zeros(3, 8)}, ValueError, "cos: given 3 positions, wanted at least 5"),
        ({"sin": torch.zeros(S, 9)}, ValueError, r"sin: given.*wanted float32\[8, 8\]"),
        ({"ratio": 0}, ValueError, "ratio: given 0, wanted 1 to 1024"),
        ({"eps": 1e-9}, ValueError, "eps: given 1e-09, wanted 2\\^-22 to 1"),
        ({"lengths": torch.tensor([8, 9], dtype=torch.int32)}, ValueError, r"lengths: given \[8, 9\], wanted 0 to 8"),
        ({"lengths": torch.tensor([8, 8])}, TypeError, "lengths: given int64.*wanted int32"),
        ({"count": 3}, ValueError, "count: given 3, wanted 0 to 2"),
        ({"numerics": "fast"}, ValueError, "numerics"),
        (
            {"state": kf.CompressState.start(B, RATIO, D, True, torch.bfloat16)},
            TypeError,
            "state.kv: given bfloat16.*wanted float32",
        ),
        (
            {"state": kf.CompressState.start(B, RATIO, D, False, torch.float32)},
            ValueError,
            r"state.kv: given float32\[2, 4, 32\].*wanted float32\[2, 4, 96\]",
        ),
    ],
)
def test_mistakes_are_named(changes, error, words):
    with pytest.raises(error, match=words):
        kf.csa_compress(**arguments(**changes))


def test_two_series_where_one_is_wanted():
    with pytest.raises(ValueError, match=r"position_bias: given.*wanted float32\[4, 64\]"):
        kf.hca_compress(**arguments(position_bias=torch.zeros(RATIO, D)))
