"""What FP4 operands and bfloat16 scores keep of the choice depends on how close scores lie around the cut."""

from __future__ import annotations

import itertools

import pytest

from kernelforge.ops.lightning_indexer import recall

NOISES = (0.5, 1.0, 2.0)


@pytest.mark.slow
def test_entries_are_lost_where_scores_are_close():
    found = [recall.measure(noise) for noise in NOISES]
    for sharper, flatter in itertools.pairwise(found):
        assert sharper.slope > flatter.slope
        assert sharper.quantized > flatter.quantized
        assert sharper.score > flatter.score
    for one in found:
        assert one.rounded >= 0.99  # bfloat16 scores alone
        assert one.score >= 0.99  # entries that change sides hardly differ
