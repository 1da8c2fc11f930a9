"""kf.fp4_to_fp8 gives the reference's bits and finds every group that cannot be exact, on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelforge as kf
from kernelforge.formats import e2m1, e4m3, mx
from kernelforge.ops.fp4_to_fp8 import reference as ref
from kernelforge.ops.fp4_to_fp8.op import BUILDER
from kernelforge.runtime import KernelSpec, executable

GROUPS = [(1, 128), (128, 128)]
VIRTUAL = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
BLOCKS = 5
"""K = 160: a whole group and a partial one."""


def examples(device: str, count: int) -> int:
    """Virtual devices are slow: fewer, equally random, examples."""
    return count if device == "cpu" else max(count // 20, 3)


def _error_of(packed: np.ndarray, scale: np.ndarray, group: tuple[int, int]) -> str | None:
    """What the reference says against an exact conversion."""
    try:
        ref.fp4_to_fp8(packed, scale, group)
    except ref.LosslessError as error:
        return str(error)
    return None


def check(packed: np.ndarray, scale: np.ndarray, group: tuple[int, int], device: str = "cpu") -> bool:
    """Compare with the reference, errors included; returns whether the conversion is exact."""
    arguments = torch.from_numpy(packed), torch.from_numpy(scale), group
    rounded = ref.fp4_to_fp8(packed, scale, group, "round")
    codes, group_scale = kf.fp4_to_fp8(*arguments, on_loss="round", backend=device)
    np.testing.assert_array_equal(codes.view(torch.uint8).numpy(), rounded.codes)
    np.testing.assert_array_equal(group_scale.numpy(), rounded.scale)
    refused = _error_of(packed, scale, group)
    if refused is not None:
        with pytest.raises(kf.LosslessError) as caught:
            kf.fp4_to_fp8(*arguments, backend=device)
        assert str(caught.value) == refused
        return False
    again, _ = kf.fp4_to_fp8(*arguments, backend=device)
    assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8))
    return True


@pytest.mark.parametrize("group", GROUPS)
def test_any_bytes_convert_to_the_reference_bits(device, group):
    @settings(max_examples=examples(device, 60), **VIRTUAL)
    @given(
        seed=st.integers(0, 2**32 - 1),
        rows=st.integers(1, 140 if device == "cpu" else 20),
        low=st.integers(0, 255),
        span=st.integers(0, 30),
        zeros=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
        odd=st.sampled_from([0.0, 0.02]),
    )
    def holds(seed, rows, low, span, zeros, odd):
        rng = np.random.default_rng(seed)
        codes = np.where(rng.random((rows, 32 * BLOCKS)) < zeros, 0, rng.integers(0, 16, (rows, 32 * BLOCKS)))
        scale = np.minimum(low + rng.integers(0, span + 1, (rows, BLOCKS)), 255)
        scale = np.where(rng.random(scale.shape) < odd, rng.integers(0, 256, scale.shape), scale)
        check(e2m1.pack(codes.astype(np.uint8)), scale.astype(np.uint8), group, device)

    holds()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("large", range(1, 8))
@pytest.mark.parametrize("small", range(1, 8))
def test_each_pair_of_magnitudes_is_exact_up_to_its_threshold_and_not_beyond(group, small, large):
    spread = int(ref.HIGHEST_SHIFT[large] - ref.LOWEST_SHIFT[small])
    for beyond in (0, 1):
        codes = np.zeros((group[0], 32 * BLOCKS), np.uint8)
        scale = np.full((group[0], BLOCKS), 127, np.uint8)
        codes[0, 7], scale[0, 0] = small, 100
        codes[-1, 127], scale[-1, 3] = large | 8, 100 + spread + beyond
        assert check(e2m1.pack(codes), scale, group) is (beyond == 0)


@pytest.mark.parametrize("group", GROUPS)
def test_exact_means_the_same_values(device, group):
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (33, 16 * BLOCKS)).astype(np.uint8)
    scale = rng.integers(110, 119, (33, BLOCKS)).astype(np.uint8)
    codes, group_scale = kf.fp4_to_fp8(torch.from_numpy(packed), torch.from_numpy(scale), group, backend=device)
    wide = group_scale.repeat_interleave(group[0], 0)[:33].repeat_interleave(128, 1)[:, : 32 * BLOCKS]
    values = kf.dequantize_mxfp4(torch.from_numpy(packed), torch.from_numpy(scale), backend=device)
    assert torch.equal(codes.float() * wide, values)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", [1, 127, 128, 130])
def test_a_batch_is_its_matrices_one_by_one(group, rows):
    rng = np.random.default_rng(rows)
    packed = torch.from_numpy(rng.integers(0, 256, (2, 2, rows, 16 * BLOCKS)).astype(np.uint8))
    scale = torch.from_numpy(rng.integers(110, 140, (2, 2, rows, BLOCKS)).astype(np.uint8))
    codes, group_scale = kf.fp4_to_fp8(packed, scale, group, on_loss="round")
    assert codes.shape == (2, 2, rows, 32 * BLOCKS)
    assert group_scale.shape == (2, 2, -(-rows // group[0]), 2)
    for i in range(2):
        for j in range(2):
            expected = ref.fp4_to_fp8(packed[i, j].numpy(), scale[i, j].numpy(), group, "round")
            np.testing.assert_array_equal(codes[i, j].view(torch.uint8).numpy(), expected.codes)
            np.testing.assert_array_equal(group_scale[i, j].numpy(), expected.scale)


def test_the_error_in_a_batch_names_matrix_and_group():
    packed = torch.full((3, 2, 128), 0x77, dtype=torch.uint8)
    scale = torch.full((3, 2, 8), 127, dtype=torch.uint8)
    scale[2, 1, 5] = 160
    with pytest.raises(kf.LosslessError, match=r"group \(2, 1, 1\) of 1 x 128"):
        kf.fp4_to_fp8(packed, scale)


@pytest.mark.parametrize("block_rows", [1, 4, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_tiles_or_threads(block_rows, threads):
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 256, (37, 128)).astype(np.uint8)
    scale = rng.integers(110, 135, (37, 8)).astype(np.uint8)
    expected = ref.fp4_to_fp8(packed, scale, on_loss="round")
    codes, group_scale = torch.empty(37, 256, dtype=torch.uint8), torch.empty(37, 2)
    lossy = torch.empty(37, 2, dtype=torch.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        spec = KernelSpec.of(BUILDER, K=256, group_rows=1, block_M=block_rows, threads=128)
        executable(spec, "cpu")(torch.from_numpy(packed), torch.from_numpy(scale), codes, group_scale, lossy)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(codes.numpy(), expected.codes)
    np.testing.assert_array_equal(group_scale.numpy(), expected.scale)


def test_fp8_weights_and_fp4_weights_give_the_same_product_bits(device):
    """W4A4 with A as FP4, and the same A as FP8 under group scales, through the GEMM itself."""
    rng = np.random.default_rng(2)
    a = torch.from_numpy(rng.integers(0, 256, (6, 80)).astype(np.uint8))
    a_scale = torch.from_numpy(rng.integers(120, 128, (6, 5)).astype(np.uint8))
    w, w_scale = (torch.from_numpy(x) for x in mx.quantize_mxfp4(rng.standard_normal((9, 160)).astype(np.float32)))
    fp8, group_scale = kf.fp4_to_fp8(a, a_scale, backend=device)
    same = kf.mxfp4_gemm(fp8, group_scale, w, w_scale, torch.float32, backend=device)
    assert torch.equal(same, kf.mxfp4_gemm(a, a_scale, w, w_scale, torch.float32, backend=device))


def test_unreadable_scales_become_nan_and_never_pass_as_exact():
    packed = torch.zeros(1, 64, dtype=torch.uint8)
    nan = torch.tensor([[255, 127, 127, 127]], dtype=torch.uint8)
    codes, group_scale = kf.fp4_to_fp8(packed, nan)
    assert (codes.view(torch.uint8)[0, :32] == e4m3.NAN).all()
    assert not codes.view(torch.uint8)[0, 32:].any()
    assert group_scale.tolist() == [[1.0]]
    with pytest.raises(kf.LosslessError):
        kf.fp4_to_fp8(packed, torch.tensor([[191, 127, 127, 127]], dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (0, 5, 64)])
@pytest.mark.parametrize("group", GROUPS)
def test_empty_tensors_give_empty_results(shape, group):
    packed = torch.empty(shape, dtype=torch.uint8)
    codes, group_scale = kf.fp4_to_fp8(packed, torch.empty((*shape[:-1], 4), dtype=torch.uint8), group)
    assert codes.shape == (*shape[:-1], 128)
    assert group_scale.shape == (*shape[:-2], -(-shape[-2] // group[0]), 1)


def test_fp4_and_e8m0_views_are_accepted():
    packed, scale = kf.quantize_mxfp4(torch.randn(4, 128))
    expected, expected_scale = kf.fp4_to_fp8(packed, scale)
    if hasattr(torch, "float4_e2m1fn_x2"):
        packed = packed.view(torch.float4_e2m1fn_x2)
    codes, group_scale = kf.fp4_to_fp8(packed, scale.view(torch.float8_e8m0fnu))
    assert codes.dtype == torch.float8_e4m3fn
    assert torch.equal(codes.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(group_scale, expected_scale)


ZEROS = torch.zeros(2, 64, dtype=torch.uint8)
SCALE = torch.zeros(2, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kf.fp4_to_fp8(ZEROS, SCALE, (1, 64)), ValueError, r"group: given \(1, 64\)"),
        (lambda: kf.fp4_to_fp8(ZEROS, SCALE, on_loss="ignore"), ValueError, "on_loss: given 'ignore'"),
        (lambda: kf.fp4_to_fp8(ZEROS, SCALE, numerics="native"), ValueError, "numerics: fp4_to_fp8"),
        (lambda: kf.fp4_to_fp8(ZEROS, SCALE[:, :3]), ValueError, r"scale: given uint8\[2, 3\].*wanted uint8\[2, 4\]"),
        (lambda: kf.fp4_to_fp8(ZEROS, None), TypeError, "scale: a torch.Tensor is wanted"),
        (lambda: kf.fp4_to_fp8(ZEROS[:, :60], SCALE), ValueError, "packed: given .*multiple of 32"),
        (lambda: kf.fp4_to_fp8(ZEROS[0], SCALE[0]), ValueError, r"packed: given uint8\[64\]"),
        (lambda: kf.fp4_to_fp8(ZEROS.float(), SCALE), TypeError, "packed: given float32"),
        (lambda: kf.fp4_to_fp8(ZEROS.repeat(1, 2)[:, ::2], SCALE), ValueError, r"packed\.contiguous\(\)"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("group", GROUPS)
def test_torch_registration_is_complete(group):
    packed, scale = kf.quantize_mxfp4(torch.randn(2, 160))
    torch.library.opcheck(torch.ops.kernelforge.fp4_to_fp8.default, (packed, scale, group[0], None))
