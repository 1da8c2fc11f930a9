"""kf.lightning_indexer and kf.indexer_logits give the reference's bits, on every device, and refuse bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexer_data import FORMATS, TOPK, Call, D, H, arrays, assert_same, draw, expected

import kernelforge as kf
from kernelforge.backends import DeviceUnavailable
from kernelforge.ops.lightning_indexer import reference as ref
from kernelforge.ops.lightning_indexer.conformance import LENGTHS

VIRTUAL = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def examples(device: str) -> int:
    """Virtual devices are slow: fewer, equally random, examples."""
    return 60 if device == "cpu" else 3


@pytest.mark.parametrize("qk_format", FORMATS)
def test_chosen_entries_are_the_references(device, qk_format):
    @settings(max_examples=examples(device), **VIRTUAL)
    @given(
        seed=st.integers(0, 2**32 - 1),
        queries=st.integers(1, 7),
        entries=st.integers(1, 150),
        data=st.sampled_from(FORMATS[qk_format]),
        lengths=st.sampled_from(LENGTHS),
    )
    def holds(seed, queries, entries, data, lengths):
        call = draw(queries, entries, data, lengths, seed, qk_format=qk_format)
        assert_same(call.run(backend=device), expected(call))

    holds()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    entries=st.integers(1, 150),
    kind=st.sampled_from([(qk_format, data) for qk_format, kinds in FORMATS.items() for data in kinds]),
    out_dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_logits_are_the_references(seed, entries, kind, out_dtype):
    qk_format, data = kind
    call = draw(3, entries, data, seed=seed, qk_format=qk_format)
    name = str(out_dtype).removeprefix("torch.")
    wanted = ref.indexer_logits(*arrays(call), name)
    bits = torch.uint16 if out_dtype == torch.bfloat16 else torch.int32
    np.testing.assert_array_equal(
        call.logits(out_dtype).view(bits).numpy(), wanted if out_dtype == torch.bfloat16 else wanted.view(np.int32)
    )


@pytest.mark.parametrize("heads", [1, 3, 4, 24, 40, 96])
def test_any_number_of_heads(heads):
    call = draw(2, 70, "codes", heads=heads)
    assert_same(call.run(), expected(call))


@pytest.mark.parametrize(("heads", "depth"), [(3, 32), (4, 512)])
def test_any_number_of_heads_and_channels_in_bfloat16(heads, depth):
    call = draw(2, 70, "special", heads=heads, depth=depth, qk_format="bf16")
    assert_same(call.run(), expected(call))


@pytest.mark.parametrize("topk", [1, 100, 300])
def test_any_number_of_chosen_entries(topk):
    call = draw(3, 200, "ties", "all")
    assert_same(call.run(topk), expected(call, topk))


def test_long_sequences_that_fill_the_selection_again_and_again():
    """Keys that grow better with their index: every tile replaces what was kept."""
    call = draw(2, 9000, "zeros", "all")
    magnitude = torch.arange(9000) // 64
    call.k[:] = 0x22  # ones
    call.k_scale[:] = (110 + magnitude % 40)[:, None].to(torch.uint8)
    call.k_scale[4500:] = call.k_scale[4500:].sort(0).values
    call.q[:] = 0x22
    call = call._replace(weights=call.weights.abs())
    assert_same(call.run(), expected(call))


def test_a_batch_is_its_sequences():
    parts = [draw(3, 70, seed=seed) for seed in range(3)]
    whole = Call(*(torch.stack(x) for x in zip(*parts, strict=True)))
    index, scores = whole.run()
    assert index.shape == (3, 3, TOPK)
    for b, part in enumerate(parts):
        assert_same((index[b], scores[b]), expected(part))
    assert torch.equal(whole.logits()[1].view(torch.int16), parts[1].logits().view(torch.int16))


def test_without_lengths_all_entries_are_seen():
    call = draw(3, 70)._replace(kv_len=None)
    assert_same(call.run(), expected(call))
    assert torch.isfinite(call.logits()).all()


@pytest.mark.parametrize(("queries", "entries"), [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_choose_from(device, queries, entries):
    index, scores = draw(queries, entries, lengths="all").run(backend=device)
    assert index.shape == scores.shape == (queries, TOPK)
    assert (index == -1).all()
    assert (scores == float("-inf")).all()
    assert draw(queries, entries, lengths="all").logits(backend=device).shape == (queries, entries)


def test_queries_that_see_nothing_choose_nothing():
    index, scores = draw(3, 70, lengths="none").run()
    assert (index == -1).all()
    assert (scores == float("-inf")).all()
    assert (draw(3, 70, lengths="none").logits() == float("-inf")).all()


def test_equal_scores_are_chosen_by_index():
    call = draw(1, 100, lengths="all")
    call.k[:] = call.k[:1]
    call.k_scale[:] = call.k_scale[:1]
    assert call.run()[0].tolist() == [list(range(TOPK))]


def test_nan_is_chosen_first():
    call = draw(1, 100, lengths="all")
    call.k_scale[77, 0] = 0xFF
    index, scores = call.run()
    assert index[0, 0] == 77
    assert scores[0].view(torch.uint16)[0] == 0x7FC0


def test_byte_and_float_views_give_the_same_bits():
    call = draw(3, 70)
    viewed = call._replace(
        q=call.q.view(torch.float4_e2m1fn_x2),
        q_scale=call.q_scale.view(torch.float8_e8m0fnu),
        k=call.k.view(torch.float4_e2m1fn_x2),
        k_scale=call.k_scale.view(torch.float8_e8m0fnu),
    )
    assert_same(viewed.run(), call.run())


GOOD = draw(3, 70)
WIDE = draw(3, 70, qk_format="bf16")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": GOOD.q.float()}, TypeError, "q: given float32.*wanted uint8"),
        ({"q": GOOD.q[0]}, ValueError, "q: given.*wanted uint8.S, H, D/2"),
        ({"q": GOOD.q[..., :8].contiguous()}, ValueError, "D = 16; D must be a positive multiple of 32"),
        ({"q": GOOD.q[:, :0]}, ValueError, "at least one head"),
        ({"q": GOOD.q.transpose(0, 1)}, ValueError, "q_scale: given|q: given.*contiguous"),
        ({"q_scale": GOOD.q_scale[..., :1].contiguous()}, ValueError, "q_scale: given.*wanted uint8.3, 16, 2"),
        ({"k": GOOD.k[:, :16].contiguous()}, ValueError, "k: given.*wanted uint8.T, 32"),
        ({"k_scale": GOOD.k_scale[1:]}, ValueError, "k_scale: given.*wanted uint8.70, 2"),
        ({"weights": GOOD.weights.double()}, TypeError, "weights: given float64.*wanted float32"),
        ({"weights": GOOD.weights[:2]}, ValueError, "weights: given.*wanted float32.3, 16"),
        ({"kv_len": GOOD.kv_len.long()}, TypeError, "kv_len: given int64.*wanted int32"),
        ({"kv_len": GOOD.kv_len[:2]}, ValueError, "kv_len: given.*wanted int32.3"),
        ({"k": None}, TypeError, "k: a torch.Tensor is wanted"),
        ({"q_scale": None}, TypeError, "q_scale: missing, wanted uint8.3, 16, 2"),
        ({"k": WIDE.k}, TypeError, "k: given bfloat16.*wanted uint8"),
        ({"q": WIDE.q}, TypeError, "k: given uint8.*wanted bfloat16"),
        ({"q": WIDE.q, "k": WIDE.k}, ValueError, "q_scale: given uint8.*wanted None, as q and k are bfloat16"),
        ({"q": WIDE.q.repeat(1, 1, 10)}, ValueError, "D = 640; D is at most 512 in bfloat16"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    call = GOOD._replace(**change)
    with pytest.raises(error, match=words):
        call.run()
    with pytest.raises(error, match=words):
        call.logits()


@pytest.mark.parametrize("topk", [0, -1, 4097])
def test_a_bad_number_of_entries_is_named(topk):
    with pytest.raises(ValueError, match=f"topk: given {topk}, wanted 1 to 4096"):
        GOOD.run(topk)


def test_bad_modes_devices_and_types_are_named():
    with pytest.raises(ValueError, match="numerics: lightning_indexer has 'exact' and 'native', given 'fast'"):
        kf.lightning_indexer(*GOOD[:5], TOPK, GOOD.kv_len, numerics="fast")
    with pytest.raises(ValueError, match="numerics: indexer_logits has 'exact' and 'native', given 'fast'"):
        kf.indexer_logits(*GOOD, numerics="fast")
    with pytest.raises(TypeError, match=r"out_dtype: given torch\.float16"):
        GOOD.logits(torch.float16)
    with pytest.raises(DeviceUnavailable, match="abacus"):
        GOOD.run(backend="abacus")


def test_torch_registration_is_complete():
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for call in (GOOD, WIDE):
        torch.library.opcheck(
            torch.ops.kernelforge.lightning_indexer.default,
            (*call[:5], TOPK, call.kv_len, "exact", None),
            test_utils=checks,
        )
        torch.library.opcheck(
            torch.ops.kernelforge.indexer_logits.default,
            (*call, False, torch.bfloat16, "exact", None),
            test_utils=checks,
        )


def test_operands_are_left_alone():
    before = [x.clone() for x in GOOD]
    GOOD.run()
    GOOD.logits()
    assert all(torch.equal(a, b) for a, b in zip(before, GOOD, strict=True))
    assert GOOD.q.shape == (3, H, D // 2)
