"""Mixtures of residual streams have the definition's bits, whatever engine the CPU takes and wherever results go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from own_process import run_with_isa

from kernelforge.formats import bf16
from kernelforge.ops.mhc import reference
from kernelforge.runtime import KernelSpec, executable

Array = NDArray[np.float32]
SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 2.0**-149, 2.0**-50, -(2.0**-51), 2.0**100, -(2.0**127), 3.39e38)


def _values(rng: np.random.Generator, shape: tuple[int, ...], stored_in: str) -> Array:
    x = rng.standard_normal(shape).astype(np.float32)
    places = rng.random(shape)
    x = np.where(places < 0.05, np.resize(np.array(SPECIAL, np.float32), shape), x)
    x = np.where(places > 0.95, np.float32(2.0) ** rng.integers(-60, -40, shape), x).astype(np.float32)
    return bf16.decode(bf16.encode(x)) if stored_in == "bfloat16" else x


def _tensor(x: Array, dtype: str) -> torch.Tensor:
    return torch.from_numpy(bf16.encode(x) if dtype == "bfloat16" else x.copy())


def _same(out: torch.Tensor, wanted: Array, dtype: str) -> None:
    stored = bf16.encode(wanted) if dtype == "bfloat16" else wanted
    assert out.numpy().tobytes() == np.ascontiguousarray(stored).tobytes()


def mixtures_have_the_definition_s_bits(n: int, dtype: str, tokens: int = 7, C: int = 160, device: str = "cpu") -> None:
    rng = np.random.default_rng(n)
    x, y = _values(rng, (tokens, n, C), dtype), _values(rng, (tokens, C), dtype)
    gate, m = _values(rng, (tokens, n), "float32"), _values(rng, (tokens, n, n), "float32")
    operands = [
        _tensor(a.reshape(tokens, -1), d) for a, d in ((y, dtype), (x, dtype), (gate, "float32"), (m, "float32"))
    ]
    out = torch.full((tokens, n * C), 7, dtype=operands[0].dtype)
    tiles = {"block_T": 4, "block_C": C if C <= 160 else C // 4, "threads": 128}
    executable(KernelSpec.of("stream_kernels:mix", n=n, C=C, dtype=dtype, **tiles), device)(*operands, out)
    _same(out, reference.mhc_post(y, x, gate, m, dtype).reshape(tokens, -1), dtype)
    collapsed = torch.full((tokens, C), 7, dtype=operands[0].dtype)
    executable(KernelSpec.of("stream_kernels:collapse", n=n, C=C, dtype=dtype, **tiles), device)(
        operands[1], operands[2], collapsed
    )
    _same(collapsed, _collapsed(gate, x, dtype), dtype)


def _collapsed(gate: Array, x: Array, dtype: str) -> Array:
    with np.errstate(all="ignore"):
        terms = reference.read(gate)[:, :, None] * reference.read(x)
        return reference.rounded(reference.row_sum(np.moveaxis(terms, 1, -1)), dtype)


def test_results_that_go_past_the_caches() -> None:
    mixtures_have_the_definition_s_bits(4, "bfloat16", tokens=1027, C=2048)


@pytest.mark.parametrize("device", ["cuda:virtual", "ascend:virtual"])
def test_other_devices_have_the_same_bits(device: str) -> None:
    mixtures_have_the_definition_s_bits(4, "bfloat16", device=device)


@pytest.mark.parametrize("isa", ["", "portable", "avx2", "avx512bf16", "avx512vnni", "neon"])
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    """The choice is made once per process, so each runs in one of its own; "" is what this machine would take."""
    program = (
        "import test_streams as t\n"
        "for n in range(2, 9):\n"
        "  for dtype in ('bfloat16', 'float32'): t.mixtures_have_the_definition_s_bits(n, dtype)\n"
    )
    run_with_isa(isa, program, __file__)
