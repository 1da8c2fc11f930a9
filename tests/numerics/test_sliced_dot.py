"""The sliced dot has its NumPy twin's bits on every device that can run here; the twin is close to the real dot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from own_process import run_with_isa

from kernelforge import backends
from kernelforge.formats import bf16
from kernelforge.numerics import window
from kernelforge.runtime import KernelSpec, executable

DEVICES = [
    d.name
    for owner in backends.backends().values()
    for d in owner.devices()
    if d.available and (d.virtual or owner.tensor_device == "cpu")
]
KINDS = (("bfloat16", 2, 4), ("float32", 3, 5), ("bfloat16", 3, 3), ("float32", 3, 3))
"""Types of rows that meet float32 weights, their slices, and the ranks of slice products that are kept."""
NAN = np.array(0x7FC00000, np.uint32).view(np.float32)
M, N = 32, 16


def _rows(rng: np.random.Generator, rows: int, columns: int, dtype: str) -> np.ndarray:
    """Stored rows: normal and heavy-tailed ones, and one of every kind that the definition treats by itself."""
    x = rng.standard_normal((rows, columns)).astype(np.float32)
    x[1::2] *= 2.0 ** rng.integers(-40, 40, (rows // 2, 1))
    x[2::4] = rng.standard_t(3, x[2::4].shape)
    x[3, ::7] *= 100
    x[4] = 0
    x[5] = np.float32(3.3895314e38)  # every slice at its largest
    x[6] = -np.float32(2.0**-50)
    x[7] = np.float32(2.0**-51)  # reads as zero
    x[8, 3] = np.nan
    x[9, -1] = -np.inf
    x[10] = np.where(np.arange(columns) % 2 == 0, 1.9999999, -1.9999999)
    x[11] = np.float32(1.9921875) * np.where(np.arange(columns) % 3 == 0, 1, -1)  # significand 255: one exponent more
    x[12, 1:] = np.ldexp(x[12, 0], -np.arange(1, columns) % 40)
    x[13] = np.float32(1e-45)
    x[14] = 2.0**100
    x[15] /= 2 * np.abs(x[15]).max()
    # The largest significands of three slices under an exponent, and the smallest that take one more.
    edges = np.array([0x3FFEFEFE, 0x3FFEFEFF, 0x3FFEFFFE, 0xBFFEFEFF, 0x3FFEFFFF], np.uint32).view(np.float32)
    x[15, ::128] = edges[: len(x[15, ::128])]
    return x if dtype == "float32" else bf16.encode(x)


def _expected(
    a: np.ndarray, b: np.ndarray, dtypes: tuple[str, str], slices: tuple[int, int], ranks: int, length: int
) -> np.ndarray:
    """The definition of ``numerics.window`` on each chunk; a chunk with an infinity or a NaN is NaN."""
    total = np.zeros((a.shape[0], b.shape[0]), np.float32)
    with np.errstate(all="ignore"):
        for start in range(0, a.shape[1], length):
            operands, usable = [], []
            for stored, dtype, count in zip((a, b), dtypes, slices, strict=True):
                x = stored[:, start : start + length]
                x = bf16.decode(x) if dtype == "bfloat16" else x
                x = np.where(np.abs(x) < np.float32(2.0**-50), np.float32(0), x)
                usable.append(np.isfinite(x).all(-1))
                operands.append(window.window(np.where(usable[-1][:, None], x, np.float32(0)), count))
            total = total + np.where(usable[0][:, None] & usable[1], window.sliced_dot(*operands, ranks=ranks), NAN)
    return total


def _run(device: str, builder: str, a: np.ndarray, b: np.ndarray, **parameters: object) -> np.ndarray:
    out = np.full((a.shape[0], b.shape[0]), 7, np.float32)
    tensors = [torch.from_numpy(array) for array in (a, b, out)]
    spec = KernelSpec.of(f"sliced_dot_kernels:{builder}", M=a.shape[0], N=b.shape[0], K=a.shape[1], **parameters)
    executable(spec, device)(*tensors)
    return out


def _same(out: np.ndarray, wanted: np.ndarray) -> None:
    def canonical(x: np.ndarray) -> np.ndarray:
        return bf16.canonical(x).view(np.int32)

    assert np.array_equal(canonical(out), canonical(wanted))


@pytest.mark.parametrize("device", DEVICES)
def test_whole_rows_have_the_definition_s_bits(device: str) -> None:
    rng = np.random.default_rng(1)
    a, b = _rows(rng, M, 512, "bfloat16"), _rows(rng, N, 512, "bfloat16")
    out = _run(device, "whole_rows", a, b, dtype="bfloat16")
    _same(out, _expected(a, b, ("bfloat16", "bfloat16"), (2, 2), 3, 512))


def by_chunks_has_the_definition_s_bits(
    device: str, x_dtype: str, slices: int, ranks: int, rows: int = M, columns: int = N
) -> None:
    rng = np.random.default_rng(3)
    x, w = _rows(rng, rows, 640, x_dtype), _rows(rng, columns, 640, "float32")
    out = _run(device, "by_chunks", x, w, x_dtype=x_dtype, slices=slices, ranks=ranks)
    _same(out, _expected(x, w, (x_dtype, "float32"), (slices, 3), ranks, 128))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("x_dtype", "slices", "ranks"), KINDS)
def test_chunks_are_added_ascending(device: str, x_dtype: str, slices: int, ranks: int) -> None:
    by_chunks_has_the_definition_s_bits(device, x_dtype, slices, ranks)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512bf16", "avx512vnni", "neon"])
def test_every_instruction_set_of_the_cpu_gives_the_same_bits(isa: str) -> None:
    """The choice is made once per process, so each runs in one of its own; 29 rows and 24 columns fill no tiles."""
    program = (
        "from test_sliced_dot import KINDS, by_chunks_has_the_definition_s_bits as check; "
        "[check('cpu', *kind, *size) for kind in KINDS for size in ((32, 16), (29, 24))]"
    )
    run_with_isa(isa, program, __file__)


@pytest.mark.parametrize(("slices", "K", "bound"), [(2, 512, 1e-5), (3, 256, 1e-7), (2, 4096, 1e-5)])
def test_dot_is_close_to_the_real_one(slices: int, K: int, bound: float) -> None:
    rng = np.random.default_rng(5)
    a, b = (bf16.decode(bf16.encode(rng.standard_normal((64, K)).astype(np.float32))) for _ in range(2))
    wanted = a.astype(np.float64) @ b.astype(np.float64).T
    error = window.dot(a, b, slices, slices) - wanted
    assert np.linalg.norm(error) <= bound * np.linalg.norm(wanted)


def test_longest_whole_rows_keep_every_sum_below_24_bits() -> None:
    largest = np.full((1, 512), -32639, np.int32)
    row = window.Window(largest, np.zeros(1, np.int32), 2)
    found = window.sliced_dot(row, row)
    assert found[0, 0] == np.float32(512 * 32639.0**2 * 2.0**-30)
    longer = window.Window(np.full((1, 544), 1, np.int32), np.zeros(1, np.int32), 2)
    with pytest.raises(ValueError, match="24 bits"):
        window.sliced_dot(longer, longer)
