"""MX blocks whose operands carry their scales: the reference's bits where scales stop joining them, on tuned tiles."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import cuda_kernels as kernels
from test_mxfp4_gemm_virtual import assert_same_bits, expected, operands, run

from kernelforge_cuda import nvcc

pytest.importorskip("kernelforge_cuda.virtual", reason="the PTX executor is not built")
pytestmark = pytest.mark.skipif(nvcc.find() is None, reason="nvcc is not installed")

M, N = 70, 200  # partial tiles of 16 rows and more, and of 16 columns and more
FORMATS = ("e2m1", "e4m3_e8m0", "bf16")

A_SCALES = (127, 0, 1, 76, 77, 127, 189, 190, 191, 0xFE, 0xFF)
"""Below 77 scales read as 0, above 190 as infinite; all between join activations."""
W_SCALES = (127, 0, 1, 76, 77, 127, 147, 148, 149, 189, 190, 191, 0xFE, 0xFF)
"""Scales join weights up to 148, which is 2^21."""
E4M3_CODES = ((0, 0x7F), (0, 8), (0, 0x69), (0, 0x71), (0, 0x79), (0x60, 0x7F))
"""All, subnormal ones, those up to the least at which windows cut one, two, three bits, large ones."""
BF16_EXPONENTS = ((103, 140), (0, 2), (75, 79), (77, 90), (200, 206), (204, 208), (230, 255), (60, 255))
"""Numbers from 77 on are read; factors of blocks with 206 or more are infinite."""


def limits(a_format, rng, experts, k):
    """Each row and each column has scales of one kind, so that every pair of them meets; some blocks are NaN."""
    groups = max(experts, 1)
    w = rng.integers(0, 256, (groups * N, k // 2), dtype=np.uint8)
    w_scale = _kinds(W_SCALES, groups * N, k)
    rows = np.arange(M)
    if a_format == "e2m1":
        return rng.integers(0, 256, (M, k // 2), dtype=np.uint8), _kinds(A_SCALES, M, k), w, w_scale
    signs = rng.integers(0, 2, (M, k))
    unusable = (rng.random((M, k // 32)) < 0.02).repeat(32, axis=1) & (rng.random((M, k)) < 0.1)
    if a_format == "e4m3_e8m0":
        low, high = np.array(E4M3_CODES)[rows % len(E4M3_CODES)].T
        a = np.where(unusable, 0x7F, rng.integers(low[:, None], high[:, None], (M, k))) | signs << 7
        return a.astype(np.uint8), _kinds(A_SCALES, M, k), w, w_scale
    low, high = np.array(BF16_EXPONENTS)[rows % len(BF16_EXPONENTS)].T
    exponent = np.where(unusable, 255, rng.integers(low[:, None], high[:, None], (M, k)))
    mantissa = np.where(rng.random((M, k)) < 0.2, 127, rng.integers(0, 128, (M, k)))
    return (signs << 15 | exponent << 7 | mantissa).astype(np.uint16), None, w, w_scale


def _kinds(scales, count, k):
    """A third of the rows each: one scale of the list for the whole row, neighbours in turns, 127 but for one block."""
    kind, block = np.arange(count)[:, None], np.arange(k // 32)[None, :]
    mixed = np.where(kind % 3 == 1, kind + block, np.where((kind % 3 == 2) & (block != kind % (k // 32)), 0, kind))
    return np.array(scales, np.uint8)[mixed % len(scales)]


# Tuned tiles first; a depth of 13 blocks (scales are copied by bytes) or 20 (by words), and experts.
CASES = [
    ((64, 256, 128, 256, 2), 640, 0),
    ((16, 32, 512, 128, 4), 640, 0),
    ((16, 64, 128, 128, 3), 416, 3),
    ((32, 32, 256, 64, 3), 416, 0),
    ((16, 32, 256, 128, 4), 640, 3),
    ((64, 64, 256, 128, 3), 640, 0),
    ((64, 128, 128, 256, 3), 416, 0),
    ((32, 64, 128, 128, 2), 640, 3),
    # Other numbers of blocks, whose weights lie in shared memory in another order, and other parts for warps.
    ((64, 64, 384, 128, 1), 416, 0),
    ((128, 32, 96, 128, 2), 416, 0),
    ((16, 16, 64, 64, 2), 416, 0),
]


def some_of(cases):
    """The first tiles in every format, the others in one each on an ordinary run."""
    return [
        pytest.param(
            a_format,
            *case,
            id=f"{a_format}-{'x'.join(map(str, case[0]))}-{case[1]}-{case[2]}",
            marks=[] if number < 3 or turn == number % 3 else [pytest.mark.slow],
        )
        for number, case in enumerate(cases)
        for turn, a_format in enumerate(FORMATS)
    ]


@pytest.mark.parametrize("data", ["values", "limits"])
@pytest.mark.parametrize(("a_format", "tile", "k", "experts"), some_of(CASES))
def test_bits_are_the_references(a_format, tile, k, experts, data):
    rng = np.random.default_rng(13)
    names = ("block_M", "block_N", "block_K", "threads", "num_stages")
    built = kernels.built_gemm(
        "sm_90a", a_format, experts, N=N, K=k, out="float32", **dict(zip(names, tile, strict=True))
    )
    made = limits(a_format, rng, experts, k) if data == "limits" else operands(a_format, M, rng, experts, n=N, k=k)
    offsets = np.array([0, 37, 37, M], np.int32) if experts else None
    wanted = expected(*made, a_format, offsets, "float32")
    floats = wanted.view(np.float32)
    if data == "limits":
        assert all(kind.any() for kind in (np.isnan(floats), np.isinf(floats), floats == 0))
    assert len(np.unique(floats[np.isfinite(floats)])) > 1000
    assert_same_bits(run(built, *made, offsets, n=N, out_dtype=torch.float32), wanted)
