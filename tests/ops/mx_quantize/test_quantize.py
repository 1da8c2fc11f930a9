"""Quantization to MX blocks and back gives the reference's bits, on every device and for every input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernelforge as kf
from kernelforge.formats import bf16, e4m3, e8m0
from kernelforge.ops.mx_quantize import reference as ref
from kernelforge.ops.mx_quantize.op import mxfp8_values
from kernelforge.runtime import KernelSpec, executable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ELEMENTS = {"e2m1": (kf.quantize_mxfp4, ref.quantize_mxfp4), "e4m3": (kf.quantize_mxfp8, ref.quantize_mxfp8)}
VIRTUAL = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
K = 96


def examples(device: str, count: int) -> int:
    """Virtual devices are slow: fewer, equally random, examples."""
    return count if device == "cpu" else max(count // 20, 3)


def tensor_of(bits: np.ndarray, dtype: str) -> torch.Tensor:
    """A tensor with these bits."""
    return torch.from_numpy(np.ascontiguousarray(bits)).view(DTYPES[dtype])


def bytes_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy()


def check_quantize(x: torch.Tensor, element: str, rule: str, device: str) -> None:
    op, reference = ELEMENTS[element]
    codes, scale = op(x, rule, backend=device)
    expected_codes, expected_scale = reference(x.to(torch.float32).numpy(), rule)
    np.testing.assert_array_equal(bytes_of(codes), expected_codes)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)


def uint_bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 2**32 if dtype == "float32" else 2**16, shape).astype(
        np.uint32 if dtype == "float32" else np.uint16
    )


def block_values(rng: np.random.Generator, rows: int, spread: int) -> np.ndarray:
    """float32 rows whose blocks differ in magnitude, with zeros, ties and values at the saturation limits."""
    x = rng.standard_normal((rows, K)) * 2.0 ** rng.integers(-spread, spread + 1, (rows, 1))
    grid = np.array([0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 6.0000005, 7, 8, 448, 449, 464, 480, 0.0009765625])
    ties = rng.choice(grid, (rows, K)) * rng.choice([-1, 1], (rows, K)) * 2.0 ** rng.integers(-3, 4, (rows, 1))
    return np.where(rng.random((rows, 1)) < 0.5, x, ties).astype(np.float32)


@pytest.mark.parametrize("rule", ["ceil", "floor"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_any_bit_pattern_quantizes_to_the_reference_bits(device, element, dtype, rule):
    @settings(max_examples=examples(device, 40), **VIRTUAL)
    @given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9))
    def check(seed, rows):
        rng = np.random.default_rng(seed)
        check_quantize(tensor_of(uint_bits(rng, dtype, (rows, K)), dtype), element, rule, device)

    check()


@pytest.mark.parametrize("rule", ["ceil", "floor"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_values_ties_and_saturation_limits_quantize_to_the_reference_bits(device, element, dtype, rule):
    @settings(max_examples=examples(device, 40), **VIRTUAL)
    @given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), spread=st.integers(0, 60))
    def check(seed, rows, spread):
        x = block_values(np.random.default_rng(seed), rows, spread)
        check_quantize(torch.from_numpy(x).to(DTYPES[dtype]), element, rule, device)

    check()


def test_every_16_bit_float_quantizes_to_the_reference_bits():
    """Each code alone in its block beside zeros (amax of every kind), and under a large neighbour (every rounding)."""
    codes = np.arange(2**16, dtype=np.uint16)
    for dtype, neighbour in itertools.product(("bfloat16", "float16"), (0, 0x3C00, 0x4400)):
        bits = np.zeros((2**16, 32), np.uint16)
        bits[:, 5] = codes
        bits[:, 9] = neighbour
        for element in ELEMENTS:
            check_quantize(tensor_of(bits, dtype), element, "ceil", "cpu")


@pytest.mark.parametrize("element", ELEMENTS)
def test_special_blocks(device, element):
    x = torch.zeros(8, K)
    x[1, 0] = 2.0**-50
    x[2, 0] = float(np.nextafter(np.float32(2.0**-50), np.float32(0)))
    x[3, 40] = float("nan")
    x[4, 40] = float("-inf")
    x[5] = -0.0
    x[6, 7] = torch.finfo(torch.float32).max
    x[7, 7] = 2.0**-149
    codes, scale = ELEMENTS[element][0](x, backend=device)
    values = bytes_of(codes).reshape(8, 3, -1)
    assert (scale[0] == 0).all()
    assert (scale[5] == 0).all(), "a block of zeros has scale 2^-127"
    assert values[1, 0].any(), "2^-50 is read"
    assert scale[2].tolist() == [0, 0, 0], "what is below reads as zero"
    assert scale[7].tolist() == [0, 0, 0]
    assert scale[3].tolist() == [0, 255, 0]
    assert scale[4].tolist() == [0, 255, 0]
    assert not values[3:5].any()
    assert not values[5].any(), "-0 is written as +0"
    check_quantize(x, element, "ceil", device)
    check_quantize(x, element, "floor", device)


@pytest.mark.parametrize("rule", ["ceil", "floor"])
def test_only_the_floor_rule_saturates(rule):
    x = torch.full((1, 32), 7.9)
    packed, scale = kf.quantize_mxfp4(x, rule)
    value = kf.dequantize_mxfp4(packed, scale)
    assert (value == (6.0 if rule == "floor" else 8.0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_codes_under_all_scales_dequantize_to_the_reference_bits(device, dtype):
    edges = [0, 76, 77, 127, 190, 191, 254, 255]
    scale = np.array(range(256) if device == "cpu" else edges, np.uint8)[:, None]
    packed = np.resize(np.array([c | (15 - c) << 4 for c in range(16)], np.uint8), (scale.shape[0], 16))
    out = kf.dequantize_mxfp4(torch.from_numpy(packed), torch.from_numpy(scale), DTYPES[dtype], backend=device)
    expected = ref.round_output(ref.dequantize_mxfp4(packed, scale), dtype)
    np.testing.assert_array_equal(bytes_of(out), np.ascontiguousarray(expected).view(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_bytes_dequantize_to_the_reference_bits(device, dtype):
    @settings(max_examples=examples(device, 40), **VIRTUAL)
    @given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9))
    def check(seed, rows):
        rng = np.random.default_rng(seed)
        packed = rng.integers(0, 256, (rows, K // 2)).astype(np.uint8)
        scale = rng.integers(0, 256, (rows, K // 32)).astype(np.uint8)
        out = kf.dequantize_mxfp4(torch.from_numpy(packed), torch.from_numpy(scale), DTYPES[dtype], backend=device)
        expected = ref.round_output(ref.dequantize_mxfp4(packed, scale), dtype)
        np.testing.assert_array_equal(bytes_of(out), np.ascontiguousarray(expected).view(np.uint8))

    check()


def test_a_round_trip_of_representable_values_is_the_identity(device):
    @settings(max_examples=examples(device, 40), **VIRTUAL)
    @given(seed=st.integers(0, 2**32 - 1), rule=st.sampled_from(["ceil", "floor"]))
    def check(seed, rule):
        rng = np.random.default_rng(seed)
        packed = torch.from_numpy(rng.integers(0, 256, (4, K // 2)).astype(np.uint8))
        scale = torch.from_numpy(rng.integers(80, 190, (4, K // 32)).astype(np.uint8))
        values = kf.dequantize_mxfp4(packed, scale, backend=device)
        again = kf.dequantize_mxfp4(*kf.quantize_mxfp4(values, rule, backend=device), backend=device)
        np.testing.assert_array_equal(bytes_of(again), bytes_of(values))

    check()


@pytest.mark.parametrize("width", [32, 64, 160, 7168])
def test_every_width_and_leading_shape_gives_the_rows_one_by_one(width):
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(width))
    for op in (kf.quantize_mxfp4, kf.quantize_mxfp8):
        codes, scale = op(x)
        assert codes.shape[:2] == scale.shape[:2] == (2, 3)
        assert scale.shape[-1] == width // 32
        for i, j in itertools.product(range(2), range(3)):
            code_row, scale_row = op(x[i, j])
            assert torch.equal(codes[i, j].view(torch.uint8), code_row.view(torch.uint8))
            assert torch.equal(scale[i, j], scale_row)


@pytest.mark.parametrize("tiles", [(1, 32), (1, 96), (3, 32), (8, 192)])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_tiles_or_threads(tiles, threads):
    width, rows = 192, 13
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    expected_codes, expected_scale = ref.quantize_mxfp4(x.numpy())
    schedule = {"block_M": tiles[0], "block_K": tiles[1], "threads": 128}
    builder = "kernelforge.ops.mx_quantize.kernel:"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        codes, scale = (
            torch.empty(rows, width // 2, dtype=torch.uint8),
            torch.empty(rows, width // 32, dtype=torch.uint8),
        )
        spec = KernelSpec.of(
            builder + "mx_quantize", K=width, dtype="float32", element="e2m1", scale_rule="ceil", **schedule
        )
        executable(spec, "cpu")(x, codes, scale)
        values = torch.empty(rows, width)
        executable(KernelSpec.of(builder + "mxfp4_dequantize", K=width, dtype="float32", **schedule), "cpu")(
            codes, scale, values
        )
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)
    np.testing.assert_array_equal(bytes_of(values), ref.dequantize_mxfp4(expected_codes, expected_scale).view(np.uint8))


def test_nothing_is_written_outside_the_outputs():
    """The last tile of rows is partial: what follows the outputs in memory stays as it was."""
    x = torch.randn(5, 64)
    spec = KernelSpec.of(
        "kernelforge.ops.mx_quantize.kernel:mx_quantize",
        K=64,
        dtype="float32",
        element="e2m1",
        scale_rule="ceil",
        block_M=4,
        block_K=64,
        threads=128,
    )
    codes, scale = torch.full((8, 32), 0xA5, dtype=torch.uint8), torch.full((8, 2), 0xA5, dtype=torch.uint8)
    executable(spec, "cpu")(x, codes[:5], scale[:5])
    assert (codes[5:] == 0xA5).all()
    assert (scale[5:] == 0xA5).all()


def test_fp4_and_e8m0_views_are_accepted():
    packed, scale = kf.quantize_mxfp4(torch.randn(4, 64))
    expected = kf.dequantize_mxfp4(packed, scale)
    views = [(packed, scale.view(torch.float8_e8m0fnu))]
    if hasattr(torch, "float4_e2m1fn_x2"):
        views.append((packed.view(torch.float4_e2m1fn_x2), scale.view(torch.float8_e8m0fnu)))
    for view in views:
        assert torch.equal(kf.dequantize_mxfp4(*view), expected)


def test_fp8_codes_carry_their_torch_type():
    codes, scale = kf.quantize_mxfp8(torch.randn(3, 64))
    assert codes.dtype == torch.float8_e4m3fn
    assert scale.dtype == torch.uint8
    power = torch.from_numpy(e8m0.read_scale(scale.numpy())).repeat_interleave(32, -1)
    assert torch.isfinite(codes.float() * power).all()


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (0, 3, 32)])
def test_empty_tensors_give_empty_results(device, shape):
    x = torch.empty(shape)
    packed, scale = kf.quantize_mxfp4(x, backend=device)
    assert packed.shape == (*shape[:-1], shape[-1] // 2)
    assert scale.shape == (*shape[:-1], shape[-1] // 32)
    assert kf.quantize_mxfp8(x, backend=device)[0].shape == shape
    assert kf.dequantize_mxfp4(packed, scale, torch.float16, backend=device).shape == shape


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kf.quantize_mxfp4(torch.zeros(2, 33)), ValueError, "x: given float32.*multiple of 32"),
        (lambda: kf.quantize_mxfp4(torch.zeros(2, 0)), ValueError, "positive multiple of 32"),
        (lambda: kf.quantize_mxfp4(torch.zeros(())), ValueError, "x: given"),
        (lambda: kf.quantize_mxfp4(torch.zeros(2, 32, dtype=torch.float64)), TypeError, "x: given float64"),
        (lambda: kf.quantize_mxfp4(np.zeros((2, 32))), TypeError, "x: a torch.Tensor is wanted"),
        (lambda: kf.quantize_mxfp4(torch.zeros(64, 2).T), ValueError, r"x\.contiguous\(\)"),
        (lambda: kf.quantize_mxfp4(torch.zeros(2, 32), "nearest"), ValueError, "scale_rule: given 'nearest'"),
        (lambda: kf.quantize_mxfp8(torch.zeros(2, 32), numerics="fast"), ValueError, "numerics: quantize_mxfp8"),
        (lambda: kf.quantize_mxfp8(torch.zeros(2, 32), backend="abacus"), RuntimeError, "abacus"),
        (lambda: kf.dequantize_mxfp4(torch.zeros(2, 16), torch.zeros(2, 1)), TypeError, "packed: given float32"),
        (
            lambda: kf.dequantize_mxfp4(torch.zeros(2, 20, dtype=torch.uint8), torch.zeros(2, 1)),
            ValueError,
            "packed: given uint8.*multiple of 32",
        ),
        (
            lambda: kf.dequantize_mxfp4(torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8)),
            ValueError,
            "scale: given",
        ),
        (
            lambda: kf.dequantize_mxfp4(
                torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.uint8), torch.int8
            ),
            TypeError,
            "dtype: given torch.int8",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_registration_is_complete(dtype):
    x = torch.randn(2, 64, dtype=DTYPES[dtype])
    packed, scale = kf.quantize_mxfp4(x)
    torch.library.opcheck(torch.ops.kernelforge.mx_quantize.default, (x, "e2m1", "floor", None))
    torch.library.opcheck(torch.ops.kernelforge.mx_quantize.default, (x, "e4m3", "ceil", "cpu"))
    torch.library.opcheck(torch.ops.kernelforge.dequantize_mxfp4.default, (packed, scale, DTYPES[dtype], None))


def test_shapes_are_known_without_data():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(4, 2, 96)
        packed, scale = kf.quantize_mxfp4(x)
        assert (packed.shape, scale.shape) == ((4, 2, 48), (4, 2, 3))
        assert kf.dequantize_mxfp4(packed, scale, torch.bfloat16).dtype == torch.bfloat16


def test_two_runs_give_the_same_bits():
    x = torch.randn(17, 256)
    first, second = kf.quantize_mxfp4(x), kf.quantize_mxfp4(x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_bfloat16_output_is_exact():
    packed, scale = kf.quantize_mxfp4(torch.randn(8, 64))
    wide, narrow = kf.dequantize_mxfp4(packed, scale), kf.dequantize_mxfp4(packed, scale, torch.bfloat16)
    np.testing.assert_array_equal(bf16.decode(narrow.view(torch.uint16).numpy()), wide.numpy())


def test_values_of_mxfp8_rows_are_exact_for_every_code_and_scale():
    """Beyond the scales that C1 reads: zeros, infinities, and NaN for 0xFF."""
    codes = np.arange(256, dtype=np.uint8).repeat(32).reshape(1, -1).repeat(256, 0)
    scale = np.arange(256, dtype=np.uint8).reshape(-1, 1).repeat(256, 1)
    found = mxfp8_values(torch.from_numpy(codes), torch.from_numpy(scale)).float().numpy()
    with np.errstate(invalid="ignore"):
        expected = e4m3.decode(codes) * e8m0.read_scale(scale).repeat(32, 1)
    np.testing.assert_array_equal(found, expected)
