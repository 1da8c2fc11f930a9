"""The reference against an oracle in Python fractions: exact block integers, correctly rounded fp32 operations."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import big_integer_oracle as oracle

from kernelforge.formats import e2m1
from kernelforge.ops.mxfp4_gemm.reference import A_FORMATS, mxfp4_gemm

OUT_BITS = {"float32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16}


def check(a, a_scale, a_format, w, w_scale):
    """``a``, ``w``: one code per element; compares every output in every type."""
    stored = e2m1.pack(a) if a_format == "e2m1" else a
    blocks = w_scale.shape[1]
    per_block = [[None] * blocks] * len(a)
    if a_format == "e4m3_f32":
        per_block = np.repeat(a_scale.view(np.uint32), 4, axis=1)[:, :blocks].tolist()
    elif a_format != "bf16":
        per_block = a_scale.tolist()
    exact = [
        [
            oracle.output(a[m].tolist(), per_block[m], a_format, w[n].tolist(), w_scale[n].tolist())
            for n in range(len(w))
        ]
        for m in range(len(a))
    ]
    for dtype, unsigned in OUT_BITS.items():
        out = mxfp4_gemm(stored, a_scale, e2m1.pack(w), w_scale, a_format, dtype)
        expected = [[oracle.output_bits(x, dtype) for x in row] for row in exact]
        np.testing.assert_array_equal(out.view(unsigned), np.array(expected, unsigned))


def codes_of(a_format, rng, shape, style):
    if a_format == "e2m1":
        return rng.integers(0, 16, shape).astype(np.uint8)
    if a_format.startswith("e4m3"):
        codes = rng.integers(0, 256, shape).astype(np.uint8)
        return codes if style == "wild" else np.where((codes & 0x7F) == 0x7F, np.uint8(0x7E), codes)
    if style == "wild":
        return rng.integers(0, 65536, shape).astype(np.uint16)
    exponent = rng.integers(100, 140, shape) if style == "tame" else rng.integers(60, 180, shape)
    return (rng.integers(0, 2, shape) << 15 | exponent << 7 | rng.integers(0, 128, shape)).astype(np.uint16)


def scale_of(a_format, rng, rows, k, style):
    low, high = {"tame": (110, 140), "wide": (60, 189), "wild": (0, 256)}[style]
    if a_format == "bf16":
        return None
    if a_format == "e4m3_f32":
        shape = (rows, -(-k // 128))
        bits = (
            rng.integers(low, min(high, 256), shape) << 23
            | rng.integers(0, 2**23, shape)
            | rng.integers(0, 2, shape) << 31
        )
        return bits.astype(np.uint32).view(np.float32)
    return rng.integers(low, high, (rows, k // 32)).astype(np.uint8)


@pytest.mark.parametrize("style", ["tame", "wide", "wild"])
@pytest.mark.parametrize("a_format", A_FORMATS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), m=st.integers(1, 3), n=st.integers(1, 3), blocks=st.integers(1, 6))
def test_random_operands_give_the_oracles_bits(a_format, style, seed, m, n, blocks):
    rng = np.random.default_rng(seed)
    k = 32 * blocks
    a, a_scale = codes_of(a_format, rng, (m, k), style), scale_of(a_format, rng, m, k, style)
    w, w_scale = codes_of("e2m1", rng, (n, k), style), scale_of("e2m1", rng, n, k, style)
    check(a, a_scale, a_format, w, w_scale)


SCALE_BYTES = [0, 1, 76, 77, 78, 127, 189, 190, 191, 254, 255]


@pytest.mark.parametrize("a_format", ["e2m1", "e4m3_e8m0"])
def test_every_pair_of_edge_scales(a_format):
    rng = np.random.default_rng(0)
    a = codes_of(a_format, rng, (len(SCALE_BYTES), 32), "tame")
    w = codes_of("e2m1", rng, (len(SCALE_BYTES), 32), "tame")
    byte = np.array(SCALE_BYTES, np.uint8)[:, None]
    check(a, byte, a_format, w, byte)


def test_edge_float32_scales():
    rng = np.random.default_rng(1)
    thresholds = np.array(
        [2.0**-50, 2.0**-42, 2.0**-34, 2.0**62, 2.0**70, 2.0**71, 2.0**78, 3e38, 1e-45, 0.0], np.float32
    )
    with np.errstate(over="ignore"):
        scales = np.concatenate(
            [
                thresholds,
                np.nextafter(thresholds, np.float32(0)),
                np.nextafter(thresholds, np.float32(np.inf)),
                -thresholds,
            ]
        )
    scales = np.append(scales, np.array([np.inf, -np.inf, np.nan], np.float32)).astype(np.float32)[:, None]
    a = codes_of("e4m3_f32", rng, (len(scales), 64), "tame")
    a[:, :32] &= 0x87  # one block of subnormals, another exponent
    w_scale = np.array([[127, 127], [77, 190], [190, 77]], np.uint8)
    check(a, scales, "e4m3_f32", codes_of("e2m1", rng, (3, 64), "tame"), w_scale)


@pytest.mark.parametrize("nan", [0x7F, 0xFF])
def test_a_nan_element_spoils_its_block_alone(nan):
    rng = np.random.default_rng(2)
    a = codes_of("e4m3_e8m0", rng, (2, 96), "tame")
    a[0, 40] = nan
    check(
        a,
        np.full((2, 3), 127, np.uint8),
        "e4m3_e8m0",
        codes_of("e2m1", rng, (2, 96), "tame"),
        np.full((2, 3), 127, np.uint8),
    )


def test_bfloat16_special_values_and_window_carries():
    rng = np.random.default_rng(3)
    a = codes_of("bf16", rng, (10, 32), "tame")
    a[0, 3], a[1, 4], a[2, 5] = 0x7F80, 0xFF80, 0x7FC1
    a[3] = 0x8000
    a[4] = rng.integers(0, 77 << 7, 32)
    a[5] = 77 << 7
    a[6], a[7] = 0x3FFF, 0x7F7F
    a[8] = [0x3FFF] + [0x3B80 | i for i in range(31)]
    a[9] = 0x0001
    # Factors below 2^-50 are kept: only float32 scales are flushed again.
    a = np.concatenate([a, rng.integers(77 << 7, 90 << 7, (4, 32)).astype(np.uint16)])
    w_scale = np.array([[127], [190], [77], [200]], np.uint8)
    check(a, None, "bf16", codes_of("e2m1", rng, (4, 32), "tame"), w_scale)


@pytest.mark.parametrize("sign", [0, 0x80])
def test_the_largest_block_integers(sign):
    """Every product 32256 or 30720 times 12 with one sign: the sums that a narrow accumulator would lose."""
    w = np.full((1, 128), 7, np.uint8)
    scale = np.full((1, 4), 127, np.uint8)
    check(np.full((1, 128), 0x7E | sign, np.uint8), scale, "e4m3_e8m0", w, scale)
    a = np.full((1, 128), 0x3F7E | sign << 8, np.uint16)
    a[0, ::2] = 0x3B81
    check(a, None, "bf16", w, scale)


def test_float16_results_overflow_round_to_subnormals_and_never_write_minus_zero():
    w = np.zeros((1, 32), np.uint8)
    w[0, 0] = 2
    a = np.zeros((40, 32), np.uint8)
    a[:, 0] = np.resize([1, 2, 3, 7, 9, 10, 11, 15], 40)
    a_scale = np.resize(np.r_[127 - 27 : 127 - 22, 127 + 12 : 127 + 18].repeat(4), 40).astype(np.uint8)[:, None]
    check(a, a_scale, "e2m1", w, np.full((1, 1), 127, np.uint8))
