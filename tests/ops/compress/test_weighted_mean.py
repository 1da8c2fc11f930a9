"""The microkernels of the weighted mean and of its gradient: every instruction set and number of slots gives the
reference's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from own_process import printed

from kernelforge.ops.compress import conformance
from kernelforge.ops.compress.conformance import DATA, Problem

KINDS = {
    "csa of 4": Problem(4, True, 96, 16, "float32", 1, 24),
    "csa of 7": Problem(7, True, 64, 4, "bfloat16", 2, 30),
    "hca of 4": Problem(4, False, 64, 6, "bfloat16", 1, 12),
    "hca of 96": Problem(96, False, 64, 16, "float32", 1, 200),
    "hca of 128": Problem(128, False, 96, 16, "bfloat16", 1, 384),
}
"""8 slots, 14, 4 with an order of their own, three to a lane, four to a lane; pairs of channels by 8, 4 and 2."""
RUN = """
import test_weighted_mean as t
for p in t.KINDS.values():
    t.entries_have_the_references_bits(p)
    t.gradients_have_the_references_bits(p)
print("same bits")
"""


def entries_have_the_references_bits(p: Problem) -> None:
    for seed, data in enumerate(DATA):
        inputs = conformance.draw(p, data, np.random.default_rng(seed))
        np.testing.assert_array_equal(conformance.fed(p, inputs, (), "cpu"), conformance.expected_entries(p, inputs))


def gradients_have_the_references_bits(p: Problem) -> None:
    for seed, data in enumerate(DATA):
        random = np.random.default_rng(seed)
        inputs, grad = conformance.draw(p, data, random), conformance.draw_grad(p, random)
        found = conformance.gradients(p, inputs, grad, "cpu")
        for name, expected in conformance.expected_gradients(p, inputs, grad).items():
            np.testing.assert_array_equal(found[name], expected, f"{name}, {data}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_slots(kind: str) -> None:
    entries_have_the_references_bits(KINDS[kind])
    gradients_have_the_references_bits(KINDS[kind])


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set(isa: str) -> None:
    """The choice is made once per process, so each runs in one of its own."""
    if isa == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no avx2 here")
    assert printed(RUN, __file__, KERNELFORGE_CPU_ISA=isa) == "same bits"
