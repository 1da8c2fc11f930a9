"""kf.mxfp4_gemm and kf.grouped_mxfp4_gemm give the reference's bits, on every device, and refuse bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gemm_data import FORMATS, OUT_DTYPES, as_bits, assert_same_bits, call, draw, expected, with_offsets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelforge as kf
from kernelforge.ops.mxfp4_gemm.conformance import DATA

N, K, EXPERTS = 70, 160, 3
"""No extent is a multiple of a tile's; M stays in one row of the tuning tables, so one kernel serves a test."""

VIRTUAL = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def examples(device: str) -> int:
    """Virtual devices are slow: fewer, equally random, examples."""
    return 40 if device == "cpu" else 3


def check_dense(device: str, a_format: str, out_dtype: str) -> None:
    @settings(max_examples=examples(device), **VIRTUAL)
    @given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 16), data=st.sampled_from(DATA))
    def holds(seed, rows, data):
        operands = draw(a_format, rows, N, K, data=data, seed=seed)
        assert_same_bits(call(operands, a_format).run(out_dtype, device), expected(operands, a_format, out_dtype))

    holds()


def check_grouped(device: str, a_format: str, out_dtype: str) -> None:
    @settings(max_examples=examples(device), **VIRTUAL)
    @given(
        seed=st.integers(0, 2**32 - 1),
        data=st.sampled_from(DATA),
        cuts=st.lists(st.integers(0, 50), min_size=EXPERTS, max_size=EXPERTS).map(sorted),
    )
    def holds(seed, data, cuts):
        cuts[-1] = max(cuts[-1], 33)
        operands = draw(a_format, cuts[-1], N, K, EXPERTS, data, seed)
        operands = with_offsets(operands, [0, *cuts])
        assert_same_bits(call(operands, a_format).run(out_dtype, device), expected(operands, a_format, out_dtype))

    holds()


# One output type per format: those of the conformance suite's small size, whose kernels are then compiled once.
@pytest.mark.parametrize(("a_format", "out_dtype"), list(zip(FORMATS, (*OUT_DTYPES, OUT_DTYPES[0]), strict=True)))
def test_dense_bits_are_the_references(device, a_format, out_dtype):
    check_dense(device, a_format, out_dtype)


@pytest.mark.parametrize("a_format", FORMATS)
def test_grouped_bits_are_the_references(device, a_format):
    check_grouped(device, a_format, "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
@pytest.mark.parametrize("a_format", FORMATS)
def test_bits_are_the_references_in_every_output_type(device, a_format, out_dtype):
    check_dense(device, a_format, out_dtype)
    check_grouped(device, a_format, out_dtype)


@settings(deadline=None, max_examples=12)
@given(
    rows=st.integers(0, 150),
    columns=st.sampled_from([1, 7, 33, 130]),
    blocks=st.sampled_from([1, 3, 9]),
    seed=st.integers(0, 2**32 - 1),
    a_format=st.sampled_from(["e2m1", "bf16"]),
)
def test_bits_are_the_references_for_shapes_of_every_kind(rows, columns, blocks, seed, a_format):
    operands = draw(a_format, rows, columns, 32 * blocks, data="codes", seed=seed)
    assert_same_bits(call(operands, a_format).run("bfloat16"), expected(operands, a_format, "bfloat16"))


@pytest.mark.parametrize("a_format", FORMATS)
def test_prefill_bits_are_the_references(a_format):
    for experts in (0, EXPERTS):
        operands = draw(a_format, 133, N, K, experts, "codes", 3)
        assert_same_bits(call(operands, a_format).run("bfloat16"), expected(operands, a_format, "bfloat16"))


def test_leading_dimensions_are_rows():
    operands = call(draw("e4m3_e8m0", 12, N, K), "e4m3_e8m0")
    flat = operands.run()
    batched = operands._replace(a=operands.a.view(2, 3, 2, K), a_scale=operands.a_scale.view(2, 3, 2, K // 32)).run()
    assert batched.shape == (2, 3, 2, N)
    assert torch.equal(batched.view(12, N), flat)
    vector = operands._replace(a=operands.a[0], a_scale=operands.a_scale[0]).run()
    assert torch.equal(vector, flat[0])


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2)])
def test_empty_activations_give_an_empty_result(device, shape):
    operands = call(draw("bf16", 1, N, K), "bf16")
    out = operands._replace(a=torch.empty(*shape, K, dtype=torch.bfloat16)).run("bfloat16", device)
    assert out.shape == (*shape, N)


def test_no_weights_give_no_columns():
    operands = call(draw("bf16", 4, N, K), "bf16")
    assert operands._replace(w=operands.w[:0], w_scale=operands.w_scale[:0]).run().shape == (4, 0)


def test_all_groups_empty_but_one():
    for full in range(EXPERTS):
        offsets = [0] * (full + 1) + [9] * (EXPERTS - full)
        operands = with_offsets(draw("e2m1", 9, N, K, EXPERTS), offsets)
        assert_same_bits(call(operands, "e2m1").run("bfloat16"), expected(operands, "e2m1", "bfloat16"))


def test_byte_and_float_views_give_the_same_bits():
    operands = call(draw("e2m1", 5, N, K), "e2m1")
    typed = {"a_scale": operands.a_scale, "w_scale": operands.w_scale}
    typed = {name: value.view(torch.float8_e8m0fnu) for name, value in typed.items()}
    if hasattr(torch, "float4_e2m1fn_x2"):
        typed |= {"a": operands.a.view(torch.float4_e2m1fn_x2), "w": operands.w.view(torch.float4_e2m1fn_x2)}
    assert torch.equal(operands._replace(**typed).run(), operands.run())


def test_special_results_have_one_pattern_each():
    """NaN is one NaN and -0 is +0 in every output type."""
    operands = draw("bf16", 3, N, K, data="nan")
    operands.a[1] = 0x8000
    for out_dtype, nan in (("float32", 0x7FC00000), ("bfloat16", 0x7FC0), ("float16", 0x7E00)):
        out = call(operands, "bf16").run(out_dtype)
        bits = as_bits(out)
        assert torch.isnan(out).any()
        assert (bits[torch.isnan(out).numpy()] == nan).all()
        assert not bits[1].any()


A = torch.zeros(4, 64, dtype=torch.bfloat16)
W = torch.zeros(8, 32, dtype=torch.uint8)
SCALE = torch.zeros(8, 2, dtype=torch.uint8)
FP8 = torch.zeros(4, 64, dtype=torch.float8_e4m3fn)
OFFSETS = torch.tensor([0, 1, 4], dtype=torch.int32)
WE, SCALE_E = torch.zeros(2, 8, 32, dtype=torch.uint8), torch.zeros(2, 8, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((A, SCALE[:4], W, SCALE), ValueError, "a_scale: given uint8.*pass None"),
        ((A.float(), None, W, SCALE), TypeError, "a: given float32"),
        ((A[:, :32].contiguous(), None, W, SCALE), ValueError, r"a: given bfloat16\[4, 32\].*wanted bfloat16\[4, 64\]"),
        ((FP8, None, W, SCALE), TypeError, r"a_scale: missing, wanted uint8\[4, 2\]"),
        ((FP8, torch.zeros(4, 2), W, SCALE), ValueError, r"a_scale: given float32\[4, 2\].*wanted float32\[4, 1\]"),
        ((A, None, W[:, :20].contiguous(), SCALE), ValueError, "w: given .*K must be a positive multiple of 32"),
        ((A, None, W.int(), SCALE), TypeError, "w: given int32"),
        ((A, None, W, SCALE[:7]), ValueError, r"w_scale: given uint8\[7, 2\].*wanted uint8\[8, 2\]"),
        ((A.T.contiguous().T, None, W, SCALE), ValueError, r"a\.contiguous\(\)"),
        ((A, None, W, SCALE, torch.int8), TypeError, "out_dtype: given torch.int8"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        kf.mxfp4_gemm(*arguments)


@pytest.mark.parametrize(
    ("offsets", "error", "words"),
    [
        (OFFSETS.long(), TypeError, "group_offsets: given int64"),
        (OFFSETS[:2], ValueError, r"group_offsets"),
        (torch.tensor([0, 3, 2], dtype=torch.int32), ValueError, "group_offsets: given .*ascending from 0 to M = 4"),
        (torch.tensor([0, 5, 4], dtype=torch.int32), ValueError, "group_offsets: given"),
        (torch.tensor([1, 2, 4], dtype=torch.int32), ValueError, "group_offsets: given"),
        (torch.tensor([0, 2, 3], dtype=torch.int32), ValueError, "group_offsets: given"),
        (torch.tensor([-1, 2, 4], dtype=torch.int32), ValueError, "group_offsets: given"),
    ],
)
def test_bad_offsets_are_named(offsets, error, words):
    with pytest.raises(error, match=words):
        kf.grouped_mxfp4_gemm(A, None, WE, SCALE_E, offsets)


def test_unknown_modes_and_devices_are_named():
    with pytest.raises(ValueError, match="numerics: mxfp4_gemm has"):
        kf.mxfp4_gemm(A, None, W, SCALE, numerics="loose")
    with pytest.raises(kf.backends.DeviceUnavailable, match="abacus"):
        kf.mxfp4_gemm(A, None, W, SCALE, backend="abacus")


@pytest.mark.parametrize("a_format", FORMATS)
def test_torch_registration_is_complete(a_format):
    # The schema check compares operands by torch.allclose, which torch's CPU has not for FP8; that an op leaves its
    # operands alone is held bit for bit by test_operands_are_left_alone.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    checks = checks if a_format.startswith("e4m3") else ("test_schema", *checks)
    dense = call(draw(a_format, 4, N, K), a_format)
    dense_op, grouped_op = torch.ops.kernelforge.mxfp4_gemm.default, torch.ops.kernelforge.grouped_mxfp4_gemm.default
    torch.library.opcheck(dense_op, (*dense[:4], torch.bfloat16, None), test_utils=checks)
    grouped = call(draw(a_format, 4, N, K, EXPERTS), a_format)
    torch.library.opcheck(grouped_op, (*grouped, torch.bfloat16, None), test_utils=checks)


def test_shapes_are_known_without_data():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        a = torch.empty(2, 5, 64, dtype=torch.bfloat16)
        w, scale = torch.empty(8, 32, dtype=torch.uint8), torch.empty(8, 2, dtype=torch.uint8)
        out = kf.mxfp4_gemm(a, None, w, scale, torch.float16)
    assert (out.shape, out.dtype) == ((2, 5, 8), torch.float16)


def test_operands_are_left_alone():
    operands = call(draw("e4m3_f32", 6, N, K, EXPERTS), "e4m3_f32")
    before = [tensor.clone() for tensor in operands]
    operands.run("float16")
    for tensor, copy in zip(operands, before, strict=True):
        assert torch.equal(tensor.view(torch.uint8), copy.view(torch.uint8))


def test_a_kernel_compiled_for_one_row_count_serves_others():
    operands = draw("bf16", 16, N, K)
    whole = call(operands, "bf16")
    wanted = expected(operands, "bf16")
    for rows in (16, 1, 7):
        assert_same_bits(whole.rows(slice(rows)).run(), np.ascontiguousarray(wanted[:rows]))
