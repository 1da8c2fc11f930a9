"""The exact mode against a float64 oracle, and against the customary path: bfloat16 operands, fp32 accumulation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import kernelforge as kf

M, N, K = 48, 96, 1024


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape)


def student_t(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_t(3, shape)


def outlier_channels(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    x = rng.standard_normal(shape)
    x[:, rng.choice(shape[1], 4, replace=False)] *= 100
    return x


FORMATS = ["e2m1", "e4m3_e8m0", "e4m3_f32", "bf16"]
DATA = [normal, student_t, outlier_channels]


def operands(a_format: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, np.ndarray]:
    """Activations in a format, and the float64 values that they stand for."""
    if a_format == "bf16":
        a = x.bfloat16()
        return a, None, a.double().numpy()
    if a_format == "e2m1":
        a, scale = kf.quantize_mxfp4(x)
        return a, scale, kf.dequantize_mxfp4(a, scale).double().numpy()
    if a_format == "e4m3_e8m0":
        a, scale = kf.quantize_mxfp8(x)
        powers = torch.exp2(scale.double() - 127).repeat_interleave(32, -1)
        return a, scale, (a.double() * powers).numpy()
    blocks = x.view(M, K // 128, 128)
    scale = blocks.abs().amax(-1) / 448
    a = (blocks / scale[..., None]).view(M, K).to(torch.float8_e4m3fn)
    return a, scale, (a.double() * scale.double().repeat_interleave(128, -1)).numpy()


def problem(
    a_format: str, data: Callable[..., np.ndarray]
) -> tuple[tuple[torch.Tensor | None, ...], np.ndarray, np.ndarray]:
    """The GEMM's operands, and the float64 matrices they stand for."""
    rng = np.random.default_rng(7)
    a, a_scale, a_values = operands(a_format, torch.from_numpy(data(rng, (M, K)).astype(np.float32)))
    w, w_scale = kf.quantize_mxfp4(torch.from_numpy(rng.standard_normal((N, K)).astype(np.float32)))
    return (a, a_scale, w, w_scale), a_values, kf.dequantize_mxfp4(w, w_scale).double().numpy()


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("a_format", ["e2m1", "e4m3_f32"])
def test_never_worse_than_bfloat16_operands_with_fp32_accumulation(a_format, data, out_dtype):
    """Where the activations are whole in their windows, or bfloat16 cannot hold them either.

    It does not hold of E4M3 under E8M0 scales and of BF16, which bfloat16 operands carry without any error: windows
    cut the bits of elements far below their block's largest. Those have the bound of the next test.
    """
    arguments, a, w = problem(a_format, data)
    exact = a @ w.T
    customary = (torch.from_numpy(a).bfloat16().float() @ torch.from_numpy(w).bfloat16().float().T).to(out_dtype)
    assert error(kf.mxfp4_gemm(*arguments, out_dtype), exact) <= error(customary, exact)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("a_format", FORMATS)
def test_the_error_is_half_a_window_unit_per_element_and_one_rounding_per_block(a_format, data):
    """Every output within the bound that follows from contract C3 and C4, in float64."""
    arguments, a, w = problem(a_format, data)
    out = kf.mxfp4_gemm(*arguments, torch.float32).double().numpy()
    blocks = np.abs(a).reshape(M, K // 32, 32)
    # The unit is 2^(e - 15) with 2^e at most 2 * (256 / 255) * amax; half of it is lost at most. FP4 loses nothing.
    half_unit = 0 if a_format == "e2m1" else 2.0**-15 * (256 / 255) * blocks.max(-1)
    sliced = (np.broadcast_to(half_unit, blocks.shape[:2])) @ np.abs(w).reshape(N, K // 32, 32).sum(-1).T
    # Per block one rounded sum, and with float32 scales a rounded scale and a rounded product.
    roundings = K // 32 + (2 if a_format == "e4m3_f32" else 0)
    rounded = roundings * 2.0**-24 * (np.abs(a) @ np.abs(w).T + sliced) * (1 + 2.0**-16)
    assert (np.abs(out - a @ w.T) <= sliced * (1 + 2.0**-20) + rounded).all()


@pytest.mark.parametrize("a_format", FORMATS)
def test_a_bfloat16_result_is_the_float32_result_rounded_once(a_format):
    arguments, _, _ = problem(a_format, student_t)
    assert torch.equal(kf.mxfp4_gemm(*arguments), kf.mxfp4_gemm(*arguments, torch.float32).bfloat16())


def error(out: torch.Tensor, exact: np.ndarray) -> float:
    """Relative error in the Frobenius norm."""
    return float(np.linalg.norm(out.double().numpy() - exact) / np.linalg.norm(exact))
