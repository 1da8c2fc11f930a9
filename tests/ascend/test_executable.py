"""Kernels on the virtual device, called with tensors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import ascend_kernels as kernels
from ascend_harness import executable, lowered

from kernelforge.backends import Execution, executing
from kernelforge.formats import mx
from kernelforge.ops.mxfp4_gemm import reference
from kernelforge_ascend.marshal import Marshaller
from kernelforge_ascend.virtual import Schedule

rng = np.random.default_rng(11)
GEMM = {"block_M": 32, "block_N": 64, "block_K": 128, "threads": 128, "num_stages": 2}


def mxfp4_gemm(N, K, experts, a_format, out_dtype):
    from kernelforge.ops.mxfp4_gemm import kernel

    return kernel.mxfp4_gemm(N, K, experts, a_format, out_dtype, **GEMM)


def codes(*shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def scales(*shape: int) -> np.ndarray:
    return rng.integers(117, 137, shape, dtype=np.uint8)


def activations(M: int, K: int, a_format: str) -> tuple[np.ndarray, np.ndarray | None]:
    if a_format == "e2m1":
        return codes(M, K // 2), scales(M, K // 32)
    if a_format == "bf16":
        return (rng.standard_normal((M, K), np.float32).view(np.uint32) >> 16).astype(np.uint16), None
    if a_format == "e4m3_e8m0":
        return codes(M, K), scales(M, K // 32)
    return codes(M, K), rng.standard_normal((M, K // 128), np.float32)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(np.int16) if array.dtype == np.uint16 else array)


@pytest.mark.parametrize(
    ("a_format", "out_dtype"),
    [("e2m1", "bfloat16"), ("e4m3_e8m0", "float32"), ("e4m3_f32", "float16"), ("bf16", "bfloat16")],
)
def test_mxfp4_gemm_has_the_bits_of_the_reference(a_format, out_dtype):
    M, N, K = 50, 96, 256
    a, a_scale = activations(M, K, a_format)
    w, w_scale = codes(N, K // 2), scales(N, K // 32)
    want = reference.mxfp4_gemm(a, a_scale, w, w_scale, a_format, out_dtype)
    kernel = executable(mxfp4_gemm, N, K, 0, a_format, out_dtype)
    scale = np.zeros((1, 1), np.uint8) if a_scale is None else a_scale
    for schedule in (Schedule("late", check=True), Schedule("random", 4, check=True)):
        out = np.full((M, N), 77, np.float32 if out_dtype == "float32" else np.uint16)
        kernel.run([tensor(x) for x in (a, scale, w, w_scale, out)], schedule)
        np.testing.assert_array_equal(out.view(np.uint8), want.view(np.uint8))


def test_grouped_mxfp4_gemm_has_the_bits_of_the_reference():
    N, K, experts = 64, 128, 3
    offsets = np.array([0, 40, 40, 45], np.int32)
    a, a_scale = activations(45, K, "e2m1")
    w, w_scale = codes(experts, N, K // 2), scales(experts, N, K // 32)
    want = reference.grouped_mxfp4_gemm(a, a_scale, w, w_scale, offsets, "e2m1")
    kernel = executable(mxfp4_gemm, N, K, experts, "e2m1", "bfloat16")
    for schedule in (Schedule("early", check=True), Schedule("random", 4, check=True)):
        out = np.full((45, N), 77, np.uint16)
        flat = w.reshape(experts * N, -1), w_scale.reshape(experts * N, -1)
        kernel.run([tensor(x) for x in (a, a_scale, *flat, offsets, out)], schedule)
        np.testing.assert_array_equal(out, want)


SMALL = {"block_M": 16, "block_N": 32, "block_K": 128, "threads": 128, "num_stages": 2}


def turns_of_the_gemm(experts):
    from kernelforge.ops.mxfp4_gemm import kernel

    return kernel.mxfp4_gemm(70, 160, experts, "e2m1", "bfloat16", **SMALL)


def turns_of_the_quantizer():
    from kernelforge.ops.mx_quantize import kernel

    return kernel.mx_quantize(160, "float32", "e2m1", "ceil", 16, 32, 128)


ORDERS = [Schedule("late", check=True), Schedule("early", check=True), Schedule("random", 4, check=True)]


@pytest.mark.parametrize("experts", [0, 3])
def test_cube_cores_take_tiles_in_turns(experts):
    """More tiles than cores: what one turn leaves in UB, L1 and L0C is still in use when the next begins."""
    M, N, K = 200, 70, 160
    kernel = executable(turns_of_the_gemm, experts)
    a, a_scale = activations(M, K, "e2m1")
    w, w_scale = codes(max(experts, 1), N, K // 2), scales(max(experts, 1), N, K // 32)
    operands = [a, a_scale, w.reshape(-1, K // 2), w_scale.reshape(-1, K // 32)]
    if experts:
        offsets = np.array([0, 90, 90, M], np.int32)
        want = reference.grouped_mxfp4_gemm(a, a_scale, w, w_scale, offsets, "e2m1")
        operands.append(offsets)
    else:
        want = reference.mxfp4_gemm(a, a_scale, w[0], w_scale[0], "e2m1")
    for schedule in ORDERS:
        out = np.full((M, N), 77, np.uint16)
        kernel.run([tensor(x) for x in (*operands, out)], schedule)
        np.testing.assert_array_equal(out, want)
    assert kernel.blocks([tensor(x) for x in (*operands, out)]) == 32


def test_vector_cores_take_tiles_in_turns():
    M, K = 16 * 14, 160
    kernel = executable(turns_of_the_quantizer)
    x = rng.standard_normal((M, K), np.float32)
    want, want_scale = mx.quantize_mxfp4(x)
    for schedule in ORDERS:
        packed, scale = np.zeros((M, K // 2), np.uint8), np.zeros((M, K // 32), np.uint8)
        kernel.run([tensor(array) for array in (x, packed, scale)], schedule)
        np.testing.assert_array_equal(packed, want)
        np.testing.assert_array_equal(scale, want_scale)
    assert kernel.blocks([tensor(array) for array in (x, packed, scale)]) == 64


@pytest.mark.parametrize(("columns", "tiles"), [(1, 9), (2, 18), (3, 27), (8, 72)])
def test_no_more_blocks_than_cores_whatever_the_simplifier_makes_of_the_grid(columns, tiles):
    info = lowered(kernels.scaled_gemm, 64 * columns, 64, 64, 64, 64).info
    assert info.extra == {"cores": 32}
    a, b = torch.zeros(9 * 64, 64, dtype=torch.int8), torch.zeros(64 * columns, 64, dtype=torch.int8)
    tensors = [a, b, torch.zeros(9 * 64, 1), torch.zeros(64 * columns, 1), torch.zeros(9 * 64, 64 * columns)]
    assert Marshaller(info, "cpu").blocks(tensors) == min(tiles, 32)


def test_a_call_executes_as_chosen(monkeypatch):
    kernel = executable(kernels.row_sums, 50, 160, 16)
    x, y = torch.ones(50, 160), torch.zeros(50)
    seen = []
    monkeypatch.setattr(kernel, "run", lambda tensors, schedule: seen.append(schedule))
    kernel(x, y)
    with executing(Execution("random", 7, check=False)):
        kernel(x, y)
    assert seen == [Schedule("late", 0, check=True), Schedule("random", 7, check=False)]
