"""Against a float64 oracle, the exact mode is never worse than bfloat16 operands with fp32 accumulation."""

from __future__ import annotations

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


@pytest.mark.parametrize("data", [normal, student_t, outlier_channels])
@pytest.mark.parametrize("a_format", ["e2m1", "e4m3_e8m0", "e4m3_f32", "bf16"])
def test_never_worse_than_bfloat16_operands_with_fp32_accumulation(a_format, data):
    rng = np.random.default_rng(7)
    a, a_scale, a_values = operands(a_format, torch.from_numpy(data(rng, (M, K)).astype(np.float32)))
    w, w_scale = kf.quantize_mxfp4(torch.from_numpy(rng.standard_normal((N, K)).astype(np.float32)))
    w_values = kf.dequantize_mxfp4(w, w_scale)
    exact = a_values @ w_values.double().numpy().T

    customary = torch.from_numpy(a_values).bfloat16().float() @ w_values.bfloat16().float().T
    ours = kf.mxfp4_gemm(a, a_scale, w, w_scale, torch.float32)
    assert error(ours, exact) <= error(customary, exact)

    # With a bfloat16 result, the rounding of the result is nearly all that is left.
    ours = kf.mxfp4_gemm(a, a_scale, w, w_scale, torch.bfloat16)
    best = torch.from_numpy(exact).bfloat16()
    assert error(ours, exact) <= 1.001 * error(best, exact)


def error(out: torch.Tensor, exact: np.ndarray) -> float:
    """Relative error in the Frobenius norm."""
    return float(np.linalg.norm(out.double().numpy() - exact) / np.linalg.norm(exact))
