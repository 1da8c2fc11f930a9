"""The exact int8 dot and the scalar operations that generated C calls."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microkernel_contract import padded
from microkernel_libraries import INCLUDE, Host, Library, compile_cpp, pointer


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 70),
    n=st.integers(1, 70),
    k=st.one_of(st.integers(0, 140), st.sampled_from([1023, 1024, 1025, 2100])),
    trans_b=st.booleans(),
    clear=st.booleans(),
    extreme=st.sampled_from([None, -128, 127]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gemm_s8_is_exact_on_every_engine(
    library: Library, m: int, n: int, k: int, trans_b: Any, clear: Any, extreme: Any, seed: Any
) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(-128, 128, (m, k + 3)).astype(np.int8)[:, :k]
    b = rng.integers(-128, 128, (n, k + 5) if trans_b else (k, n + 5)).astype(np.int8)
    b = b[:, :k] if trans_b else b[:, :n]
    if extreme is not None:
        a[:] = extreme
        b[:] = -128
    start = rng.integers(-(2**20), 2**20, (m, n)).astype(np.int32)
    want = a.astype(np.int64) @ (b.T if trans_b else b).astype(np.int64) + (0 if clear else start)
    for isa in library.isas:
        c = padded(start, 3)
        assert library.gemm_s8(isa, c, a, b, trans_b, clear) == 0
        assert np.array_equal(c, want), isa


def test_bf16_rounding_matches_ml_dtypes_and_canonicalizes_nan(host: Host) -> None:
    import ml_dtypes

    rng = np.random.default_rng(0)
    codes = np.arange(65536, dtype=np.uint32) << 16
    ties = np.concatenate([codes | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    bits = np.concatenate([ties, rng.integers(0, 2**32, 500_000, dtype=np.uint32)])
    x = bits.view(np.float32)
    out = np.empty(x.shape, np.uint16)
    host.harness.harness_bf16(pointer(out), pointer(x), ctypes.c_int64(x.size))
    with np.errstate(all="ignore"):
        want = x.astype(ml_dtypes.bfloat16).view(np.uint16).copy()
    want[np.isnan(x)] = 0x7FC0
    assert np.array_equal(out, want)


def test_scalar_operations_are_single_roundings(host: Host) -> None:
    host.harness.harness_scalar.restype = ctypes.c_float
    host.harness.harness_scalar.argtypes = [ctypes.c_int32, ctypes.c_float, ctypes.c_float]
    rng = np.random.default_rng(1)
    for a, b in rng.standard_normal((200, 2)).astype(np.float32):
        for operation, want in enumerate((a + b, a - b, a * b, a)):
            assert np.float32(host.harness.harness_scalar(operation, a, b)).tobytes() == want.tobytes()


@pytest.mark.parametrize(
    "file", ["kernelforge_cpu.h", *sorted(f"units/{path.name}" for path in INCLUDE.glob("units/*"))]
)
def test_every_file_compiles_alone_without_warnings(file: str, tmp_path: Path) -> None:
    """Code is made too, for the least CPU: only then do functions meet that are for different instruction sets."""
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{file}"\nint main() {{ return 0; }}\n')
    compile_cpp(source, tmp_path / "unused.s", "-S", "-O0")
