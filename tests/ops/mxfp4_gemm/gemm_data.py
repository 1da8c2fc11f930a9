"""Operands for the GEMM tests: NumPy for the reference, torch views of the same memory for the op."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

import kernelforge as kf
from kernelforge.ops.mxfp4_gemm import reference as ref
from kernelforge.ops.mxfp4_gemm.conformance import Operands, Problem, operands

FORMATS = ("e2m1", "e4m3_e8m0", "e4m3_f32", "bf16")
OUT_DTYPES = ("bfloat16", "float16", "float32")
STORED = {"e4m3_e8m0": torch.float8_e4m3fn, "e4m3_f32": torch.float8_e4m3fn, "bf16": torch.bfloat16}


class Call(NamedTuple):
    """One call's operands."""

    a: torch.Tensor
    a_scale: torch.Tensor | None
    w: torch.Tensor
    w_scale: torch.Tensor
    offsets: torch.Tensor | None

    def rows(self, index: Any) -> Call:
        """The same call on some of A's rows."""
        scale = None if self.a_scale is None else self.a_scale[index].contiguous()
        stored = self.a.view(torch.uint8)[index].contiguous().view(self.a.dtype)
        return self._replace(a=stored, a_scale=scale)

    def run(self, out_dtype: str = "float32", backend: str | None = None) -> torch.Tensor:
        dtype = getattr(torch, out_dtype)
        if self.offsets is None:
            return kf.mxfp4_gemm(self.a, self.a_scale, self.w, self.w_scale, dtype, backend=backend)
        return kf.grouped_mxfp4_gemm(self.a, self.a_scale, self.w, self.w_scale, self.offsets, dtype, backend=backend)


def draw(a_format: str, M: int, N: int, K: int, experts: int = 0, data: str = "normal", seed: int = 0) -> Operands:
    """Operands of the conformance suite's kind."""
    return operands(Problem(a_format, "float32", M, N, K, experts, data, seed))


def with_offsets(given: Operands, offsets: list[int]) -> Operands:
    return replace(given, offsets=np.array(offsets, np.int32))


def call(given: Operands, a_format: str) -> Call:
    """Torch tensors of NumPy operands."""
    a = torch.from_numpy(given.a)
    scale = None if given.a_scale is None else torch.from_numpy(given.a_scale)
    offsets = None if given.offsets is None else torch.from_numpy(given.offsets)
    a = a.view(STORED.get(a_format, torch.uint8))
    return Call(a, scale, torch.from_numpy(given.w), torch.from_numpy(given.w_scale), offsets)


def expected(given: Operands, a_format: str, out_dtype: str = "float32") -> np.ndarray:
    if given.offsets is None:
        return ref.mxfp4_gemm(given.a, given.a_scale, given.w, given.w_scale, a_format, out_dtype)
    return ref.grouped_mxfp4_gemm(given.a, given.a_scale, given.w, given.w_scale, given.offsets, a_format, out_dtype)


def as_bits(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Unsigned integers with the same bits."""
    kind = {2: np.uint16, 4: np.uint32}
    if isinstance(values, torch.Tensor):
        unsigned = {2: torch.uint16, 4: torch.uint32}[values.element_size()]
        return values.contiguous().view(unsigned).numpy()
    return np.ascontiguousarray(values).view(kind[values.dtype.itemsize])


def assert_same_bits(actual: np.ndarray | torch.Tensor, wanted: np.ndarray | torch.Tensor) -> None:
    np.testing.assert_array_equal(as_bits(actual), as_bits(wanted))
