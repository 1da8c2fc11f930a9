"""Every theorem is proved, and the prover refuses wrong ones."""

from __future__ import annotations

import pytest
import z3

from kernelforge.formats import bf16, e2m1, e4m3, e8m0
from kernelforge.numerics import window
from kernelforge.proofs import (
    ProofError,
    Theorem,
    attention,
    compress,
    fp4_to_fp8,
    indexer,
    mega_moe,
    mx_accumulator,
    mx_folding,
    prove,
    prove_all,
    sliced_dot,
)

MODULES = (attention, compress, fp4_to_fp8, indexer, mega_moe, mx_accumulator, mx_folding, sliced_dot)
THEOREMS = [theorem for module in MODULES for theorem in module.theorems()]


@pytest.mark.parametrize("theorem", THEOREMS, ids=[t.name for t in THEOREMS])
def test_theorem_is_proved(theorem):
    prove(theorem)


def test_the_proofs_speak_of_the_constants_in_use():
    import numpy as np

    assert mega_moe.LOWEST_READ == e8m0.LOWEST_READ
    assert window.LIMIT[2] == mx_accumulator.WINDOW_LIMIT
    assert e2m1.DOUBLED.max() == mx_accumulator.WEIGHT_LIMIT
    assert (mx_accumulator.LOWEST_READ, mx_accumulator.HIGHEST_READ) == (e8m0.LOWEST_READ, e8m0.HIGHEST_READ)
    e4m3_amax = e4m3.decode(np.arange(1, 0x7F, dtype=np.uint8))
    exponents = window.exponent_of(e4m3_amax)
    assert (exponents.min(), exponents.max()) == mx_accumulator.E4M3_WINDOW
    bf16_amax = bf16.decode(np.arange(77 << 7, 0x7F80, dtype=np.uint16))
    exponents = window.exponent_of(bf16_amax)
    assert (exponents.min(), exponents.max()) == mx_accumulator.BF16_WINDOW
    assert e2m1.DOUBLED.max() == indexer.WEIGHT_LIMIT
    assert bf16.NAN == indexer.NAN
    assert {c: int(e2m1.DOUBLED[c]) for c in range(1, 8)} == fp4_to_fp8.MAGNITUDES


def test_attention_is_proved_for_the_constants_in_use():
    from kernelforge.numerics import attention as rules

    assert (attention.CHUNK, attention.WEIGHT_ONE) == (rules.CHUNK, rules.WEIGHT_ONE)
    assert window.LIMIT[2] == attention.WINDOW_LIMIT


def test_wider_entries_would_break_the_bound_of_a_score(monkeypatch):
    monkeypatch.setattr(attention, "WIDTH", 544)
    with pytest.raises(ProofError, match="score_cross"):
        prove_all(attention.theorems())


@pytest.mark.parametrize("code", range(1, 8))
@pytest.mark.parametrize("side", ["LOWEST_SHIFT", "HIGHEST_SHIFT"])
@pytest.mark.parametrize("error", [-1, 1])
def test_a_threshold_off_by_one_is_refuted(monkeypatch, code, side, error):
    table = dict(getattr(fp4_to_fp8, side))
    table[code] += error
    monkeypatch.setattr(fp4_to_fp8, side, table)
    wrong = [t for t in fp4_to_fp8.theorems() if t.name in (f"outside_{code}", f"inside_{code}")]
    with pytest.raises(ProofError):
        prove_all(wrong)


def test_a_wider_window_or_weight_would_break_the_block_bound(monkeypatch):
    monkeypatch.setattr(mx_accumulator, "WEIGHT_LIMIT", 17)
    with pytest.raises(ProofError, match="block_bound"):
        prove_all(mx_accumulator._integers())


def test_the_proofs_of_folded_scales_speak_of_the_constants_in_use():
    from pathlib import Path

    import kernelforge_cuda
    from kernelforge.backends.capabilities import EXACT_DOT_BF16
    from kernelforge_cuda.backend import CudaBackend

    source = (Path(kernelforge_cuda.__file__).parent / "mx_block.h").read_text()
    raised = mx_folding.WEIGHT_EXPONENT - mx_folding.SHIFT
    lowest, highest = (exponent + mx_folding.BIAS for exponent in (e8m0.LOWEST_READ, e8m0.HIGHEST_READ))
    assert f"kShift = {mx_folding.SHIFT};" in source
    assert f"read_scale(w_scale[column * kBlocks + block], {mx_folding.WEIGHT_EXPONENT} - kShift)" in source
    assert f"byte <= min({highest}, 254 - raise)" in source
    assert f"byte < {lowest} ? 0" in source
    assert min(highest, 254 - raised) == mx_folding.FOLDED_WEIGHT + mx_folding.BIAS
    assert min(highest, 254 - mx_folding.SHIFT) == highest
    assert f"infinite = binade > {mx_folding.BLOCKS['bf16'].top} + 126" in source
    assert f"infinite ? 127 - {mx_folding.LOWERED} : 127" in source
    assert CudaBackend.capabilities.accumulator_bits[EXACT_DOT_BF16] == min(mx_folding.ACCUMULATOR_BITS)


def test_a_larger_folded_scale_would_overflow_a_sum(monkeypatch):
    low, high = mx_folding.WEIGHTS.scale
    monkeypatch.setattr(mx_folding, "WEIGHTS", mx_folding.WEIGHTS._replace(scale=(low, high + 1)))
    with pytest.raises(ProofError, match="sums_bf16_infinite"):
        prove_all(mx_folding.theorems())


def test_an_accumulator_of_fewer_bits_would_lose_the_unit(monkeypatch):
    monkeypatch.setattr(mx_folding, "ACCUMULATOR_BITS", (23,))
    with pytest.raises(ProofError, match="accumulator_23"):
        prove_all(mx_folding.theorems())


def test_lower_read_thresholds_would_let_subnormals_in(monkeypatch):
    monkeypatch.setattr(mx_accumulator, "LOWEST_READ", -54)
    with pytest.raises(ProofError, match="scale_product"):
        prove_all(mx_accumulator._factors())


def test_contradictory_premises_are_refused():
    x = z3.Int("x")
    with pytest.raises(ProofError, match="no value at all"):
        prove(Theorem("vacuous", "", [x > 0, x < 0], z3.BoolVal(False)))


def test_longer_rows_would_break_the_bound_of_the_sliced_dot(monkeypatch):
    monkeypatch.setattr(sliced_dot, "WHOLE_ROWS", {(2, 2): 544})
    with pytest.raises(ProofError, match="class_2x2"):
        prove_all(sliced_dot._classes())


def test_the_sliced_dots_proofs_speak_of_the_constants_in_use():
    from kernelforge.ops.sinkhorn.op import SMALLEST_EPS

    for (a, b), length in sliced_dot.WHOLE_ROWS.items():
        assert window.chunk_length(length, a, b) == length
        assert window.chunk_length(length + 1, a, b) == window.CHUNK
    for (a, b, ranks), unit in sliced_dot.UNITS.items():
        assert window.unit_of(a, b, ranks) == unit
    assert 2.0**sliced_dot.SMALLEST_EPS == SMALLEST_EPS


def test_the_compressors_proofs_speak_of_the_constants_in_use():
    from kernelforge.ops.compress.op import EPS_RANGE, LARGEST_RATIO
    from kernelforge.ops.compress.reference import LOWEST_WEIGHT

    assert compress.SLOTS == 2 * LARGEST_RATIO
    assert compress.LOWEST_WEIGHT == LOWEST_WEIGHT
    assert EPS_RANGE[0] == 2.0**compress.SMALLEST_EPS


def test_a_smaller_eps_would_break_the_bound_of_the_root(monkeypatch):
    root = next(t for t in compress.theorems() if t.name == "rsqrt_argument")
    monkeypatch.setattr(compress, "SMALLEST_EPS", -24)
    wider = next(t for t in compress.theorems() if t.name == "rsqrt_argument")
    with pytest.raises(ProofError, match="rsqrt_argument"):
        prove(Theorem(root.name, root.statement, wider.premises, root.claim))
