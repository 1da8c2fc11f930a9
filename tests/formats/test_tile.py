"""The TileLang macros of ``kernelforge.formats.tile`` give NumPy's bits, over all codes where there are few enough."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import format_kernels
import tile_harness

from kernelforge.formats import bf16, e2m1, e4m3, e8m0, mx
from kernelforge.formats import tile as tl
from kernelforge.numerics import window

ROWS = 512
SHAPE = (ROWS, format_kernels.COLUMNS)


def run(tmp_path, macro, *inputs, out_dtype="int32", parameters=()):
    dtypes = [str(x.dtype) for x in inputs]
    kernel = format_kernels.elementwise(macro, ROWS, dtypes, out_dtype, parameters)
    out = np.full(SHAPE, 77, out_dtype)
    arrays = dict(zip("xy", [np.ascontiguousarray(np.resize(x, SHAPE)) for x in inputs], strict=False))
    tile_harness.run_c(kernel, tmp_path, out=out, **arrays)
    return out


def every(count, dtype):
    return np.resize(np.arange(count).astype(dtype), SHAPE)


def float32_samples(seed):
    """Random bit patterns, with the special values and the neighbours of every bfloat16 and binary16 tie among them."""
    rng = np.random.default_rng(seed)
    ties = np.array([0x8000, 0x7FFF, 0x8001, 0x1000, 0x0FFF, 0x1001, 0x3000, 0x400000, 0x400001, 0x600000, 0x600001])
    bits = rng.integers(0, 2**32, SHAPE, np.uint64)
    exponents = rng.integers(60, 200, SHAPE, np.uint64) << np.uint64(23)
    near = (
        exponents
        | (rng.integers(0, 2**7, SHAPE, np.uint64) << np.uint64(16))
        | rng.choice(ties, SHAPE).astype(np.uint64)
    )
    mixed = np.where(rng.random(SHAPE) < 0.5, bits, near).astype(np.uint32)
    special = [
        0,
        0x80000000,
        0x7F800000,
        0xFF800000,
        0x7FC00000,
        0xFFFFFFFF,
        0x7F7FFFFF,
        1,
        0x26800000,
        0x267FFFFF,
    ]
    mixed.flat[: len(special)] = special
    return mixed.view(np.float32)


def test_doubled_e2m1_of_every_code(tmp_path):
    codes = every(16, np.uint8)
    np.testing.assert_array_equal(run(tmp_path, tl.e2m1.doubled, codes), e2m1.doubled(codes))


def test_every_packed_byte_splits_into_its_codes_and_joins_again(tmp_path):
    byte = every(256, np.uint8)
    np.testing.assert_array_equal(run(tmp_path, tl.e2m1.low, byte), byte & 15)
    np.testing.assert_array_equal(run(tmp_path, tl.e2m1.high, byte), byte >> 4)
    joined = run(tmp_path, tl.e2m1.pack, byte & np.uint8(15), byte >> np.uint8(4))
    np.testing.assert_array_equal(joined, byte)


def test_e4m3_significand_and_exponent_of_every_code(tmp_path):
    codes = every(256, np.uint8)
    significand = run(tmp_path, tl.e4m3.significand, codes)
    exponent = run(tmp_path, tl.e4m3.exponent, codes)
    finite = ~e4m3.is_nan(codes)
    np.testing.assert_array_equal(
        np.ldexp(significand.astype(float), exponent)[finite], np.abs(e4m3.decode(codes))[finite]
    )
    assert significand.max() <= 15


def test_every_scale_byte_is_read_by_the_contract(tmp_path):
    byte = every(256, np.uint8)
    read = run(tmp_path, tl.e8m0.read_scale, byte, out_dtype="float32")
    np.testing.assert_array_equal(read.view(np.uint32), e8m0.read_scale(byte).view(np.uint32))


def test_powers_of_two(tmp_path):
    exponent = np.resize(np.arange(-126, 128), SHAPE).astype(np.int32)
    power = run(tmp_path, tl.integer.power_of_two, exponent, out_dtype="float32")
    np.testing.assert_array_equal(power, np.ldexp(np.float32(1), exponent))


@pytest.mark.parametrize("seed", [0, 1])
def test_rounding_to_bfloat16_and_binary16(tmp_path, seed):
    x = float32_samples(seed)
    expected = bf16.encode(bf16.canonical(x))
    np.testing.assert_array_equal(run(tmp_path, tl.bf16.encode, x, out_dtype="uint16"), expected)
    expected = bf16.encode_binary16(x)
    np.testing.assert_array_equal(run(tmp_path, tl.bf16.encode_binary16, x, out_dtype="uint16"), expected)


def test_every_binary16_and_the_ties_between_them(tmp_path):
    code = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    value = code.view(np.float16).astype(np.float32)
    value = value[np.isfinite(value)]
    half_way = ((value[:-1].astype(np.float64) + value[1:]) / 2).astype(np.float32)
    for x in (code.view(np.float16).astype(np.float32), np.append(half_way, np.float32([65520, -65520]))):
        x = np.resize(x, SHAPE)
        np.testing.assert_array_equal(
            run(tmp_path, tl.bf16.encode_binary16, x, out_dtype="uint16"), bf16.encode_binary16(x)
        )


def test_canonical_and_read_bits(tmp_path):
    x = float32_samples(2)
    np.testing.assert_array_equal(run(tmp_path, tl.integer.canonical_bits, x), bf16.canonical(x).view(np.int32))
    flushed = np.where(np.isnan(x), x.view(np.int32), mx.flush(x).view(np.int32))
    np.testing.assert_array_equal(run(tmp_path, tl.integer.read_bits, x), flushed)


@pytest.mark.parametrize("element", ["e2m1", "e4m3"])
def test_codes_of_every_value_and_tie_at_every_scale(tmp_path, element):
    """All representable values, their midpoints and the neighbours of both, over scales from 2^-40 to 2^100."""
    module, macro = {"e2m1": (e2m1, tl.e2m1.encode), "e4m3": (e4m3, tl.e4m3.encode)}[element]
    values = module.decode(np.arange(8 if element == "e2m1" else 127, dtype=np.uint8)).astype(np.float64)
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, [module.MAX * 1.5, module.MAX * 2]]).astype(
        np.float32
    )
    points = np.concatenate([points, np.nextafter(points, np.float32(9e9)), np.nextafter(points, np.float32(0))])
    points = np.concatenate([points, -points])
    rng = np.random.default_rng(4)
    picked = rng.permutation(np.resize(points, ROWS * format_kernels.COLUMNS)).reshape(SHAPE)
    exponent = rng.integers(-40, 101, SHAPE).astype(np.int32)
    x = mx.flush(np.ldexp(picked, exponent).astype(np.float32))
    expected = module.encode(np.ldexp(x.astype(np.float64), -exponent))
    expected = np.where(module.decode(expected) == 0, np.uint8(0), expected)
    np.testing.assert_array_equal(run(tmp_path, macro, x, exponent, out_dtype="uint8"), expected)


@pytest.mark.parametrize("rule", ["ceil", "floor"])
@pytest.mark.parametrize("element", ["e2m1", "e4m3"])
def test_quantizing_in_a_kernel_gives_the_references_bits(tmp_path, element, rule):
    x = float32_samples(5)
    rng = np.random.default_rng(6)
    # Half the rows without NaN, infinities and wide exponents, so that scales and codes of all kinds appear.
    x[::2] = np.ldexp(rng.standard_normal((ROWS // 2, 128)), rng.integers(-60, 60, (ROWS // 2, 1))).astype(np.float32)
    x[::8, 32:64] = 0
    packed = 2 if element == "e2m1" else 1
    codes = np.full((ROWS, 128 // packed), 77, np.uint8)
    scale = np.full((ROWS, 4), 77, np.uint8)
    kernel = format_kernels.quantize_kernel(element, rule, ROWS)
    tile_harness.run_c(kernel, tmp_path, x=x, codes=codes, scale=scale)
    expected_codes, expected_scale = mx.quantize(x, element, rule)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(codes, e2m1.pack(expected_codes) if packed == 2 else expected_codes)


def windows_in_a_kernel(tmp_path, a_format, a):
    rows, columns = a.shape
    kernel = format_kernels.window_kernel(a_format, rows, columns // 32)
    out = {
        "exponent": np.full((rows, columns // 32), 77, np.int32),
        "high": np.full(a.shape, 77, np.int8),
        "low": np.full(a.shape, 77, np.int8),
        "as_bf16": np.full(a.shape, 77, np.uint16),
    }
    tile_harness.run_c(kernel, tmp_path, a=a, **out)
    return out


def check_windows(tmp_path, a_format, codes, values):
    out = windows_in_a_kernel(tmp_path, a_format, codes)
    blocks = values.reshape(len(values), -1, 32)
    unusable = ~np.isfinite(blocks).all(-1)
    expected = window.window(np.where(unusable[..., None], 0, blocks))
    np.testing.assert_array_equal(out["exponent"], np.where(unusable, tl.window.UNUSABLE, expected.exponent))
    q = expected.q.reshape(values.shape)
    high, low = window.split(q)
    np.testing.assert_array_equal(out["high"], high)
    np.testing.assert_array_equal(out["low"], low)
    np.testing.assert_array_equal(bf16.decode(out["as_bf16"]), q.astype(np.float32))


def test_windows_of_every_e4m3_code_under_every_block_maximum(tmp_path):
    code = np.arange(256, dtype=np.uint8)
    code = code[~e4m3.is_nan(code)]
    rng = np.random.default_rng(7)
    rows = []
    for largest in range(1, 128):
        smaller = code[(code & 0x7F) <= largest]
        row = np.resize(rng.permutation(smaller), 31 * 8).reshape(8, 31)
        rows.append(np.insert(row, 5, largest, axis=1).ravel())
    rows.append(np.zeros(256, np.uint8))
    codes = np.array(rows, np.uint8)
    codes[3, 40] = 0xFF
    check_windows(tmp_path, "e4m3", codes, e4m3.decode(codes))


def test_windows_of_bfloat16_of_every_significand_and_distance(tmp_path):
    rng = np.random.default_rng(8)
    largest = rng.integers(77 << 7, 0x7F80, (256, 8, 1))
    below = np.maximum(largest - rng.integers(0, 17 << 7, (256, 8, 32)), 0)
    below[..., 3:4] = largest
    codes = (below | (rng.integers(0, 2, below.shape) << 15)).astype(np.uint16).reshape(256, 256)
    codes[0, :32] = rng.integers(0, 77 << 7, 32)
    codes[1, 5], codes[2, 7], codes[3, 9] = 0x7F80, 0xFFC1, 0xFF80
    codes[4, :32] = 0x3FFF
    check_windows(tmp_path, "bf16", codes, mx.flush(bf16.decode(codes)))


@pytest.mark.skipif(not tile_harness.HAS_NVCC, reason="needs nvcc to compile the generated CUDA source")
def test_the_kernels_compile_for_cuda(tmp_path):
    ptx = tile_harness.cuda_ptx(format_kernels.window_kernel("bf16", 32, 4), tmp_path)
    assert ".entry" in ptx
    ptx = tile_harness.cuda_ptx(format_kernels.quantize_kernel("e4m3", "ceil", 32), tmp_path)
    assert "f32" not in ptx.replace("ld.global.nc.v4.f32", ""), "quantizing needs no float operation"
