"""Plan, expert feed-forward and combine give the reference's bits, on every device, and refuse bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_data import (
    EXPERTS,
    HIDDEN,
    LIMIT,
    assert_same_bits,
    choices,
    layer,
    offsets_of,
    reference,
    rows,
    tensors,
)

from kernelforge.ops.mega_moe import local

QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
SEEDS = st.integers(0, 2**32 - 1)


def examples(device: str) -> int:
    """Virtual devices are slow: fewer, equally random, examples."""
    return 40 if device == "cpu" else 3


def ffn_operands(seed: int, counts: list[int], spare: int = 0) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(seed)
    offsets = offsets_of(counts)
    n = int(offsets[-1]) + spare
    return (*rows(draw, n), offsets, draw.standard_normal(n).astype(np.float32), *layer(draw, len(counts)))


def run_ffn(operands: tuple[np.ndarray, ...], device: str = "cpu") -> torch.Tensor:
    x, *others = tensors(*operands)
    return local.expert_ffn(x.view(torch.float8_e4m3fn), *others, LIMIT, device)


def test_plan_is_the_references(device):
    @settings(max_examples=examples(device), **QUIET)
    @given(seed=SEEDS, tokens=st.integers(0, 400), dropped=st.sampled_from([0.0, 0.3, 1.0]))
    def holds(seed, tokens, dropped):
        chosen = choices(np.random.default_rng(seed), tokens, 3, EXPERTS, dropped)
        for found, expected in zip(
            local.dispatch_plan(*tensors(chosen), EXPERTS, device),
            reference.dispatch_plan(chosen, EXPERTS),
            strict=True,
        ):
            assert_same_bits(found, expected)

    holds()


def test_plan_with_everything_at_one_expert_keeps_the_order():
    chosen = torch.full((300, 2), 3, dtype=torch.int32)
    plan = local.dispatch_plan(chosen, EXPERTS)
    assert plan.order.tolist() == list(range(600))
    assert plan.offsets.tolist() == [0, 0, 0, 0, 600, 600]
    assert plan.inverse.flatten().tolist() == list(range(600))


def test_combine_is_the_references(device):
    @settings(max_examples=examples(device), **QUIET)
    @given(seed=SEEDS, tokens=st.integers(0, 20), special=st.booleans())
    def holds(seed, tokens, special):
        draw = np.random.default_rng(seed)
        y = (draw.standard_normal((40, HIDDEN)) * np.exp2(draw.integers(-60, 60, (40, 1)))).astype(np.float32)
        if special:
            y[::3, ::5] = draw.choice(np.float32([np.nan, np.inf, -np.inf, -0.0, 1e-40, 2.0**-51]), y[::3, ::5].shape)
        inverse = draw.integers(-1, 40, (tokens, 3)).astype(np.int32)
        assert_same_bits(local.combine(*tensors(y, inverse), device), reference.combine(y, inverse))

    holds()


def test_expert_ffn_is_the_references(device):
    @settings(max_examples=examples(device), **QUIET)
    @given(
        seed=SEEDS,
        counts=st.lists(st.integers(0, 12), min_size=EXPERTS, max_size=EXPERTS),
        spare=st.integers(0, 3),
        data=st.sampled_from(["normal", "codes"]),
    )
    def holds(seed, counts, spare, data):
        operands = list(ffn_operands(seed, counts, spare))
        if data == "codes":  # every bit pattern: NaN elements, scales that read as zero, infinite or NaN
            draw = np.random.default_rng(seed)
            for i in (0, 1, 4, 5, 6, 7):
                operands[i] = draw.integers(0, 256, operands[i].shape).astype(np.uint8)
            operands[3] = draw.integers(0, 2**32, operands[3].shape, dtype=np.uint32).view(np.float32)
        assert_same_bits(run_ffn(tuple(operands), device), reference.expert_ffn(*operands, LIMIT))

    holds()


def test_a_rows_bits_do_not_depend_on_the_rows_beside_it():
    operands = ffn_operands(1, [5, 0, 9, 70, 1])
    together = run_ffn(operands)
    x, x_scale, offsets, weight, *experts = operands
    for row in (0, 4, 5, 13, 50, 84):
        expert = int(np.searchsorted(offsets, row, "right")) - 1
        alone = (x[row : row + 1], x_scale[row : row + 1], offsets_of([int(e == expert) for e in range(EXPERTS)]))
        assert torch.equal(run_ffn((*alone, weight[row : row + 1], *experts))[0], together[row])


def test_experts_without_rows_and_no_rows_at_all():
    assert run_ffn(ffn_operands(2, [0] * EXPERTS)).shape == (0, HIDDEN)
    alone = ffn_operands(3, [0, 0, 0, 0, 4])
    assert_same_bits(run_ffn(alone), reference.expert_ffn(*alone, LIMIT))
    empty = local.dispatch_plan(torch.empty((0, 2), dtype=torch.int32), EXPERTS)
    assert empty.offsets.tolist() == [0] * (EXPERTS + 1)
    assert local.combine(torch.empty(0, 32), empty.inverse).shape == (0, 32)
    assert local.combine(torch.empty(0, 32), torch.full((2, 2), -1, dtype=torch.int32)).tolist() == [[0.0] * 32] * 2


@pytest.mark.parametrize("expert", [-2, EXPERTS, 2**30])
def test_expert_out_of_range_is_named(expert):
    chosen = torch.zeros((4, 2), dtype=torch.int32)
    chosen[2, 1] = expert
    with pytest.raises(ValueError, match=rf"topk_idx: given expert {expert}, wanted -1 \(dropped\) to {EXPERTS - 1}"):
        local.dispatch_plan(chosen, EXPERTS)


def test_wrong_arguments_are_named():
    x, x_scale, offsets, weight, w1, w1_scale, w2, w2_scale = tensors(*ffn_operands(4, [1] * EXPERTS))
    x = x.view(torch.float8_e4m3fn)
    good = (x, x_scale, offsets, weight, w1, w1_scale, w2, w2_scale)

    def call(position: int, value: torch.Tensor) -> None:
        local.expert_ffn(*good[:position], value, *good[position + 1 :], LIMIT)

    with pytest.raises(TypeError, match=r"x: given uint8.*wanted float8_e4m3fn\[n, 96\]"):
        call(0, x.view(torch.uint8))
    with pytest.raises(ValueError, match=r"offsets: given \[0, 1, 2, 3, 9, 9\].*n = 5"):
        call(2, torch.tensor([0, 1, 2, 3, 9, 9], dtype=torch.int32))
    with pytest.raises(TypeError, match=r"weight: given float64"):
        call(3, weight.double())
    with pytest.raises(ValueError, match=r"w1: .*2 \* inter = 96"):
        call(4, w1[:, :96].contiguous())
    with pytest.raises(ValueError, match=r"w2_scale: given uint8.*wanted uint8\[5, 96, 3\]"):
        call(7, w2_scale[..., :1].contiguous())
    with pytest.raises(ValueError, match="swiglu_limit: given -1"):
        local.expert_ffn(*good, -1)
    with pytest.raises(ValueError, match=r"inverse: given row 5, wanted -1 \(skipped\) to 4"):
        local.combine(torch.zeros(5, 32), torch.full((1, 1), 5, dtype=torch.int32))
    with pytest.raises(ValueError, match="experts: given 0"):
        local.dispatch_plan(torch.zeros((1, 1), dtype=torch.int32), 0)


def test_registration_passes_torchs_own_check():
    x, *others = tensors(*ffn_operands(5, [2, 0, 3, 1, 0]))
    chosen = torch.tensor([[0, 2], [-1, 4]], dtype=torch.int32)
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.kernelforge.moe_dispatch_plan, (chosen, EXPERTS, "cpu"), test_utils=utils)
    torch.library.opcheck(torch.ops.kernelforge.moe_combine, (torch.ones(5, 32), chosen, "cpu"), test_utils=utils)
    # torch has no comparison for FP8 arguments in test_schema.
    ffn = (x.view(torch.float8_e4m3fn), *others, LIMIT, "cpu")
    torch.library.opcheck(torch.ops.kernelforge.moe_expert_ffn, ffn, test_utils=utils[1:])
