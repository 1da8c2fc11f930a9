"""The CPU microkernels give the contract's bits on every instruction set this machine has."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "csrc" / "cpu"
HARNESS = Path(__file__).with_name("microkernels_harness.cpp")
FLAGS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    "-Werror",
]

ISAS = {"portable": 0, "neon": 1, "avx2": 2, "avx512bf16": 3, "avx512vnni": 4, "amx": 5}
FORMATS = {"e2m1": 0, "e4m3_e8m0": 1, "e4m3_f32": 2, "bf16": 3}
BLOCK = 32
TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float64)


# ----------------------------------------------------------------------------------------------------
# The contract in NumPy, independent of the C++.


def read_scale(byte: Array) -> Array:
    """E8M0 bytes as the contract reads them, float32."""
    exponent = byte.astype(np.int32) - 127
    value = np.ldexp(np.float32(1), np.clip(exponent, -50, 63)).astype(np.float32)
    value = np.where(exponent < -50, np.float32(0), value)
    value = np.where(exponent > 63, np.float32(np.inf), value)
    return np.where(byte == 0xFF, np.float32(np.nan), value).astype(np.float32)


def unpack_e2m1(packed: Array) -> Array:
    """uint8 [R, K/2] -> twice the values, float64 [R, K]."""
    out = np.empty((packed.shape[0], packed.shape[1] * 2))
    out[:, 0::2] = TWICE_E2M1[packed & 15]
    out[:, 1::2] = TWICE_E2M1[packed >> 4]
    return out


def e4m3_values() -> Array:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes >= 128, -magnitude, magnitude)


def window(x: Array) -> tuple[Array, Array, Array]:
    """float64 [R, K] -> q [R, B, 32], e [R, B], and which blocks hold only finite elements."""
    blocks = x.reshape(x.shape[0], -1, BLOCK)
    finite: Array = np.asarray(np.isfinite(blocks).all(-1))
    blocks = np.where(finite[..., None], blocks, 0.0)
    amax = np.abs(blocks).max(-1)
    _, exponent = np.frexp(amax)  # amax < 2^exponent, so 15 - exponent gives at most 2^15
    scaled = np.rint(np.ldexp(amax, 15 - exponent))
    exponent = np.where(scaled > 32639, exponent + 1, exponent)
    exponent = np.where(amax == 0, 0, exponent).astype(np.int64)
    return np.rint(np.ldexp(blocks, (15 - exponent)[..., None])), exponent, finite


def read_a(a_format: str, a: Array, a_scale: Any) -> tuple[Array, Array]:
    """Integers q [M, B, 32] and factors [M, B] (float32)."""
    if a_format == "e2m1":
        q = unpack_e2m1(a)
        return q.reshape(q.shape[0], -1, BLOCK), np.float32(0.25) * read_scale(a_scale)
    if a_format == "bf16":
        with np.errstate(invalid="ignore"):
            x = (a.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        q, e, finite = window(np.where(np.abs(x) < 2.0**-50, 0.0, x))
        factor = np.where(e - 16 > 63, np.inf, np.ldexp(1.0, np.minimum(e - 16, 63))).astype(np.float32)
    else:
        q, e, finite = window(e4m3_values()[a])
        if a_format == "e4m3_e8m0":
            factor = np.ldexp(np.float32(1), e - 16).astype(np.float32) * read_scale(a_scale)
        else:
            scale = np.where(np.abs(a_scale) < np.float32(2.0**-50), np.float32(0), a_scale)
            scale = np.repeat(scale, 4, axis=1)[:, : e.shape[1]]
            factor = scale * np.ldexp(np.float32(1), e - 16).astype(np.float32)
            factor = np.where(np.abs(factor) < np.float32(2.0**-50), np.float32(0), factor)
            factor = np.where(np.abs(factor) > np.float32(2.0**63), np.copysign(np.float32(np.inf), factor), factor)
    return q, np.where(finite, factor, np.float32(np.nan)).astype(np.float32)


def reference(a_format: str, a: Any, a_scale: Any, w: Array, w_scale: Array, acc: Array) -> Array:
    """fp32 accumulator after all blocks, ascending, one rounded product and one rounded sum per block."""
    with np.errstate(all="ignore"):
        q, fa = read_a(a_format, a, a_scale)
        v = unpack_e2m1(w).reshape(w.shape[0], -1, BLOCK)
        fw = read_scale(w_scale)
        acc = acc.astype(np.float32).copy()
        for b in range(q.shape[1]):
            integer = (q[:, b] @ v[:, b].T).astype(np.float32)
            term = (integer + np.float32(0)) * (fa[:, b, None] * fw[None, :, b])
            acc = acc + term
    return acc


def canonical(x: Array) -> Array:
    """Bits with NaN and zero canonical, as the op's epilogue writes them."""
    bits = x.view(np.uint32).copy()
    bits[np.isnan(x)] = 0x7FC00000
    bits[x == 0] = 0
    return bits


# ----------------------------------------------------------------------------------------------------
# Calling the engines.


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("microkernels") / "harness.so"
    command = [
        os.environ.get("CXX", "g++"),
        *FLAGS,
        "-fPIC",
        "-shared",
        f"-I{INCLUDE}",
        str(HARNESS),
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(path))


def available(library: ctypes.CDLL) -> list[str]:
    return [name for name, code in ISAS.items() if library.harness_isa_available(code)]


def pointer(x: Array | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.ctypes.data)


def stride(x: Array | None) -> ctypes.c_int64:
    return ctypes.c_int64(0 if x is None else x.strides[0] // x.itemsize)


def call(library: Any, isa: str, acc: Array, a: Any, a_scale: Any, w: Any, w_scale: Any, k: int, a_format: str) -> int:
    operands = [pointer(acc), stride(acc)]
    for x in (a, a_scale, w, w_scale):
        operands += [pointer(x), stride(x)]
    return library.harness_mx(ISAS[isa], *operands, acc.shape[0], acc.shape[1], k, FORMATS[a_format])


def padded(x: Array, extra: int) -> Array:
    """The same array with a leading dimension `extra` larger."""
    wide = np.zeros((x.shape[0], x.shape[1] + extra), x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def operands(
    rng: np.random.Generator,
    m: int,
    n: int,
    k: int,
    a_format: str,
    scales: tuple[int, int] = (107, 147),
    special: float = 0.0,
) -> tuple[Any, Any, Any, Any]:
    """Random codes; scale bytes in the given range; `special` is the share of extreme scales and elements."""

    def scale_bytes(rows: int) -> Array:
        out = rng.integers(*scales, (rows, k // BLOCK)).astype(np.uint8)
        odd = rng.choice(np.array([0, 1, 0x4C, 0x4D, 190, 191, 0xFE, 0xFF], np.uint8), out.shape)
        return np.where(rng.random(out.shape) < special, odd, out)

    w = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
    w_scale = scale_bytes(n)
    if a_format == "e2m1":
        return rng.integers(0, 256, (m, k // 2)).astype(np.uint8), scale_bytes(m), w, w_scale
    if a_format == "bf16":
        sign = rng.integers(0, 2, (m, k)) << 15
        spread = rng.integers(1, 24, (m, k // BLOCK)).repeat(BLOCK, 1)
        exponent = (
            127 - rng.integers(0, 1 << 30, (m, k)) % spread + rng.integers(-20, 20, (m, k // BLOCK)).repeat(BLOCK, 1)
        )
        a = (sign | exponent << 7 | rng.integers(0, 128, (m, k))).astype(np.uint16)
        a[rng.random(a.shape) < 0.05] = 0
        odd = rng.integers(0, 65536, a.shape).astype(np.uint16)
        return np.where(rng.random(a.shape) < special / 8, odd, a), None, w, w_scale
    a = rng.integers(0, 256, (m, k)).astype(np.uint8)
    a[(a & 0x7F) == 0x7F] = 0x7E
    a[rng.random(a.shape) < special / 16] = 0x7F
    small = rng.random((m, k // BLOCK)).repeat(BLOCK, 1) < 0.3
    a = np.where(small & ((a & 0x7F) != 0x7F), a & 0x9F, a)  # blocks without large elements
    if a_format == "e4m3_e8m0":
        return a, scale_bytes(m), w, w_scale
    shape = (m, -(-k // 128))
    s = (rng.standard_normal(shape) * np.ldexp(1.0, rng.integers(-12, 12, shape))).astype(np.float32)
    odd = rng.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)
    return a, np.where(rng.random(shape) < special, odd, s), w, w_scale


def check(
    library: ctypes.CDLL,
    isa: str,
    a_format: str,
    m: int,
    n: int,
    k: int,
    ops: Any,
    acc: Any = None,
    extra: int = 0,
    label: str = "",
) -> None:
    a, a_scale, w, w_scale = (x if x is None else padded(x, extra) for x in ops)
    start = np.zeros((m, n), np.float32) if acc is None else acc
    out = padded(start, extra)
    assert call(library, isa, out, a, a_scale, w, w_scale, k, a_format) == 0
    want = canonical(reference(a_format, ops[0], ops[1], ops[2], ops[3], start))
    got = canonical(np.ascontiguousarray(out))
    assert np.array_equal(got, want), f"{isa} {a_format} {m}x{n}x{k} {label}: {np.argwhere(got != want)[:4]}"


# ----------------------------------------------------------------------------------------------------
# Properties.

every_format = pytest.mark.parametrize("a_format", FORMATS)


def test_this_machine_runs_the_portable_engine(library: ctypes.CDLL) -> None:
    assert "portable" in available(library)


@every_format
@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 70),
    n=st.integers(1, 70),
    blocks=st.integers(1, 40),
    low=st.integers(40, 200),
    width=st.integers(1, 60),
    special=st.sampled_from([0.0, 0.002, 0.2]),
    extra=st.sampled_from([0, 4, 36]),
    running=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_engine_gives_the_contracts_bits(
    library: ctypes.CDLL,
    a_format: str,
    m: int,
    n: int,
    blocks: Any,
    low: Any,
    width: Any,
    special: float,
    extra: int,
    running: Any,
    seed: Any,
) -> None:
    rng = np.random.default_rng(seed)
    ops = operands(rng, m, n, blocks * BLOCK, a_format, (low, min(low + width, 255)), special)
    acc = rng.standard_normal((m, n)).astype(np.float32) if running else None
    for isa in available(library):
        check(library, isa, a_format, m, n, blocks * BLOCK, ops, acc, extra)


@every_format
@pytest.mark.parametrize(
    "shape", [(1, 48, 4096), (3, 40, 2080), (8, 64, 1056), (17, 33, 1184), (260, 40, 576), (530, 36, 96)]
)
def test_shapes_that_cross_the_engines_own_blocking(library: ctypes.CDLL, a_format: str, shape: Any) -> None:
    m, n, k = shape
    ops = operands(np.random.default_rng(m), m, n, k, a_format)
    for isa in available(library):
        check(library, isa, a_format, m, n, k, ops)


@every_format
@pytest.mark.parametrize("byte", [0, 1, 0x4C, 0x4D, 126, 127, 190, 191, 0xFE, 0xFF])
@pytest.mark.parametrize("side", ["a", "w"])
def test_every_kind_of_scale_byte(library: ctypes.CDLL, a_format: str, byte: Any, side: Any) -> None:
    m, n, k = 18, 35, 160
    a, a_scale, w, w_scale = operands(np.random.default_rng(byte), m, n, k, a_format, (120, 134))
    target = w_scale if side == "w" else a_scale
    if target is None or target.dtype != np.uint8:
        a_format, (a, a_scale, w, w_scale) = (
            "e2m1",
            operands(np.random.default_rng(byte), m, n, k, "e2m1", (120, 134)),
        )
        target = a_scale
    w[::2] &= 0x99  # rows of small codes: nothing overflows into NaN by itself
    w[::4] = 0
    if a_format == "e2m1":
        a[::2] &= 0x99
        a[::4] = 0
    target[3:9, 2] = byte
    target[11] = byte
    for isa in available(library):
        check(library, isa, a_format, m, n, k, (a, a_scale, w, w_scale), label=f"byte {byte}")


@pytest.mark.parametrize("a_format", ["e4m3_e8m0", "e4m3_f32"])
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_nan_element_makes_its_whole_block_nan(library: ctypes.CDLL, a_format: str, code: Any) -> None:
    m, n, k = 5, 20, 128
    a, a_scale, w, w_scale = operands(np.random.default_rng(0), m, n, k, a_format, (120, 134))
    a[2, 40] = code
    for isa in available(library):
        check(library, isa, a_format, m, n, k, (a, a_scale, w, w_scale))
        acc = np.zeros((m, n), np.float32)
        assert call(library, isa, acc, a, a_scale, w, w_scale, k, a_format) == 0
        assert np.array_equal(np.isnan(acc).all(1), np.arange(m) == 2)


@pytest.mark.parametrize(
    "code", [0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0xFFFF, 0x7F7F, 0x7F00, 0x0001, 0x8001, 0x0080, 0x267F, 0x2680]
)
def test_bf16_elements_at_the_edges_of_the_format(library: ctypes.CDLL, code: Any) -> None:
    """Inf, NaN, the largest finite, subnormals, and both sides of the read threshold 2^-50."""
    m, n, k = 20, 34, 96
    a, _, w, w_scale = operands(np.random.default_rng(code), m, n, k, "bf16", (120, 134))
    a[4, 33] = code
    a[7] = code
    a[19, 64:] = np.where(np.arange(32) == 5, code, 0)
    for isa in available(library):
        check(library, isa, "bf16", m, n, k, (a, None, w, w_scale))


def test_bf16_window_takes_one_more_bit_for_the_largest_significand(library: ctypes.CDLL) -> None:
    """amax = 255/128 * 2^E would give q = 32640 > 32639, so the exponent is one larger."""
    m, n, k = 3, 17, 64
    a, _, w, w_scale = operands(np.random.default_rng(1), m, n, k, "bf16", (120, 134))
    a &= 0x807F
    a |= np.uint16(110 << 7)
    a[:, 7] = 118 << 7 | 0x7F
    a[:, 40] = 118 << 7 | 0x7E
    assert window((a.astype(np.uint32) << 16).view(np.float32).astype(np.float64))[1].tolist() == [[-7, -8]] * 3
    for isa in available(library):
        check(library, isa, "bf16", m, n, k, (a, None, w, w_scale))


@pytest.mark.parametrize(
    "scale",
    [
        0.0,
        -0.0,
        2.0**-50,
        2.0**-51,
        -(2.0**-40),
        2.0**63,
        3.0e38,
        -3.0e38,
        np.inf,
        -np.inf,
        np.nan,
        1e-45,
        2.0**79,
        1 + 2.0**-23,
    ],
)
def test_fp32_scales_at_the_edges(library: ctypes.CDLL, scale: Any) -> None:
    m, n, k = 7, 35, 384
    a, a_scale, w, w_scale = operands(np.random.default_rng(2), m, n, k, "e4m3_f32", (100, 150))
    a_scale[1:4, 1] = scale
    a[2, 128:160] = 0
    for isa in available(library):
        check(library, isa, "e4m3_f32", m, n, k, (a, a_scale, w, w_scale))


@every_format
def test_all_zero_operands_leave_the_accumulator(library: ctypes.CDLL, a_format: str) -> None:
    m, n, k = 9, 33, 128
    ops = tuple(x if x is None else np.zeros_like(x) for x in operands(np.random.default_rng(0), m, n, k, a_format))
    acc = np.random.default_rng(3).standard_normal((m, n)).astype(np.float32)
    for isa in available(library):
        check(library, isa, a_format, m, n, k, ops, acc)
        out = acc.copy()
        assert call(library, isa, out, ops[0], ops[1], ops[2], ops[3], k, a_format) == 0
        assert np.array_equal(out, acc)


@pytest.mark.parametrize("sign", ["same", "alternating", "cancelling"])
def test_the_largest_block_sums_are_exact(library: ctypes.CDLL, sign: Any) -> None:
    """Every q is +-32512 = 254 * 2^7, the largest a bf16 window holds, and every weight +-12."""
    m, n, k = 16, 32, 256
    a = np.full((m, k), 0x43FE, np.uint16)  # 254/128 * 2^8
    w = np.full((n, k // 2), 0x77, np.uint8)
    if sign == "alternating":
        a[:, 1::2] |= 0x8000
        w |= 0x80
    if sign == "cancelling":
        a[:, 16::32] ^= 0x8000
        a[:, 1::3] ^= 0x0001
        w[:, 3::5] ^= 0x88
    w_scale = np.random.default_rng(0).integers(110, 140, (n, k // BLOCK)).astype(np.uint8)
    for isa in available(library):
        check(library, isa, "bf16", m, n, k, (a, None, w, w_scale))


@pytest.mark.parametrize("a_format", ["e2m1", "e4m3_e8m0", "bf16"])
def test_sums_that_cancel_down_to_the_last_bit(library: ctypes.CDLL, a_format: str) -> None:
    """Blocks of very different scales and opposite signs: one rounding more or less would show."""
    rng = np.random.default_rng(11)
    m, n, k = 33, 37, 1024
    a, a_scale, w, w_scale = operands(rng, m, n, k, a_format, (97, 157))
    w[:, 16 * 1 :: 32] = w[:, 16 * 0 :: 32] ^ 0x88
    for isa in available(library):
        check(library, isa, a_format, m, n, k, (a, a_scale, w, w_scale))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 17])
def test_overflow_is_the_contracts_and_not_the_fused_one(library: ctypes.CDLL, m: int) -> None:
    """A term past fp32's range is Inf before it is added, even where the exact sum would be finite."""
    n, k = 33, 64
    a, w = np.zeros((m, k // 2), np.uint8), np.zeros((n, k // 2), np.uint8)
    a[:, 0] = 2  # q = 2 and w = 8, scales 0.25 * 2^63 and 2^63: the term is 2^128
    w[:, 0] = 6
    a_scale, w_scale = np.full((m, k // BLOCK), 190, np.uint8), np.full((n, k // BLOCK), 190, np.uint8)
    acc = np.full((m, n), -3.0e38, np.float32)
    assert np.isposinf(reference("e2m1", a, a_scale, w, w_scale, acc)).all()
    for isa in available(library):
        check(library, isa, "e2m1", m, n, k, (a, a_scale, w, w_scale), acc)


@every_format
@settings(max_examples=15, deadline=None)
@given(
    cuts=st.tuples(st.integers(0, 45), st.integers(0, 70), st.integers(0, 3)),
    special=st.sampled_from([0.0, 0.02]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bits_do_not_depend_on_how_the_tile_is_split(
    library: ctypes.CDLL, a_format: str, cuts: Any, special: float, seed: Any
) -> None:
    m, n, k = 45, 70, 512
    a, a_scale, w, w_scale = operands(np.random.default_rng(seed), m, n, k, a_format, special=special)
    columns = {"e2m1": 2}.get(a_format, 1)  # elements per stored element of A
    per_scale = 128 if a_format == "e4m3_f32" else BLOCK
    at_m, at_n, at_k = cuts[0], cuts[1], cuts[2] * 128
    want = canonical(reference(a_format, a, a_scale, w, w_scale, np.zeros((m, n), np.float32)))
    for isa in available(library):
        acc = np.zeros((m, n), np.float32)
        for rows in (slice(0, at_m), slice(at_m, m)):
            for cols in (slice(0, at_n), slice(at_n, n)):
                for start, stop in ((0, at_k), (at_k, k)):
                    part_scale = None if a_scale is None else a_scale[rows, start // per_scale : -(-stop // per_scale)]
                    status = call(
                        library,
                        isa,
                        acc[rows, cols],
                        a[rows, start // columns : stop // columns],
                        part_scale,
                        w[cols, start // 2 : stop // 2],
                        w_scale[cols, start // BLOCK : stop // BLOCK],
                        stop - start,
                        a_format,
                    )
                    assert status == 0
        assert np.array_equal(canonical(acc), want), isa


@every_format
def test_threads_with_their_own_tiles_give_the_same_bits(library: ctypes.CDLL, a_format: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    m, n, k = 40, 256, 512
    a, a_scale, w, w_scale = operands(np.random.default_rng(4), m, n, k, a_format)
    want = canonical(reference(a_format, a, a_scale, w, w_scale, np.zeros((m, n), np.float32)))
    for isa in available(library):
        acc = np.zeros((m, n), np.float32)

        def tile(col: int, isa: str = isa, acc: Array = acc) -> int:
            cols = slice(col, col + 64)
            return call(library, isa, acc[:, cols], a, a_scale, w[cols], w_scale[cols], k, a_format)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(tile, range(0, n, 64))) == [0] * 4
        assert np.array_equal(canonical(acc), want), isa


def test_no_byte_outside_the_operands_is_touched(library: ctypes.CDLL) -> None:
    """Operands end at an unreadable page; the columns beside the accumulator's keep their bytes."""
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    keep = []

    def guarded(x: Any) -> Any:
        if x is None:
            return None
        size = -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        area = mmap.mmap(-1, size + mmap.PAGESIZE)
        keep.append(area)
        whole = np.frombuffer(area, np.uint8)
        assert libc.mprotect(whole.ctypes.data + size, mmap.PAGESIZE, 0) == 0
        y = whole[size - x.nbytes : size].view(x.dtype).reshape(x.shape)
        y[:] = x
        return y

    for a_format in FORMATS:
        for m, n, k in ((1, 1, 32), (3, 17, 96), (9, 33, 160), (2, 18, 1056)):
            ops = [guarded(x) for x in operands(np.random.default_rng(6), m, n, k, a_format)]
            want = canonical(reference(a_format, ops[0], ops[1], ops[2], ops[3], np.zeros((m, n), np.float32)))
            for isa in available(library):
                wide = np.full((m, n + 24), 7.0, np.float32)
                acc = wide[:, 8 : 8 + n]
                acc[:] = 0
                assert call(library, isa, acc, ops[0], ops[1], ops[2], ops[3], k, a_format) == 0
                assert np.array_equal(canonical(np.ascontiguousarray(acc)), want), (isa, a_format, m, n, k)
                assert (wide[:, :8] == 7).all()
                assert (wide[:, 8 + n :] == 7).all()


@pytest.mark.parametrize("shape", [(0, 5, 64), (5, 0, 64), (5, 5, 0)])
def test_empty_tiles_are_accepted_and_change_nothing(library: ctypes.CDLL, shape: Any) -> None:
    m, n, k = shape
    acc = np.full((max(m, 1), max(n, 1)), 3.0, np.float32)
    a, w, scale = (np.zeros((5, 64), np.uint8) for _ in range(3))
    assert call_entry(library, acc, m, n, k, a, scale, w, scale, 0) == 0
    assert (acc == 3.0).all()


@pytest.mark.parametrize(
    ("m", "n", "k", "a_format"),
    [(1, 1, 33, 0), (-1, 1, 32, 0), (1, -1, 32, 0), (1, 1, -32, 0)],
)
def test_bad_arguments_return_a_code(library: ctypes.CDLL, m: int, n: int, k: int, a_format: int) -> None:
    acc = np.zeros((1, 1), np.float32)
    a, w, scale = (np.zeros((1, 64), np.uint8) for _ in range(3))
    assert call_entry(library, acc, m, n, k, a, scale, w, scale, a_format) == 1


def call_entry(
    library: Any, acc: Array, m: int, n: int, k: int, a: Array, a_scale: Array, w: Array, w_scale: Array, a_format: int
) -> int:
    args = [pointer(acc), stride(acc)]
    for x in (a, a_scale, w, w_scale):
        args += [pointer(x), stride(x)]
    return library.harness_mx_entry(*args, m, n, k, a_format)


@pytest.mark.parametrize("isa", [*ISAS, "sse5"])
def test_the_environment_chooses_the_engine(library: ctypes.CDLL, isa: str) -> None:
    """A present one is used; a missing or unknown one is an error, never another engine."""
    script = (
        "import ctypes, sys\n"
        "lib = ctypes.CDLL(sys.argv[1])\n"
        "buf = (ctypes.c_uint8 * 64)(); acc = (ctypes.c_float * 1)()\n"
        "L = ctypes.c_int64(64)\n"
        "rc = lib.harness_mx_entry(acc, L, buf, L, buf, L, buf, L, buf, L, 1, 1, 32, 0)\n"
        "rc8 = lib.harness_gemm_s8_entry(acc, L, buf, L, buf, L, 1, 1, 1, 0, 1)\n"
        "print(lib.harness_current_isa(), rc, rc8)\n"
    )
    environment = {**os.environ, "KERNELFORGE_CPU_ISA": isa}
    run = subprocess.run([sys.executable, "-c", script, library._name], env=environment, capture_output=True, text=True)
    expected = f"{ISAS[isa]} 0 0" if isa in available(library) else "-1 3 3"
    assert run.stdout.strip() == expected, run.stderr


# ----------------------------------------------------------------------------------------------------
# int8 gemm and scalar helpers.


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
    library: ctypes.CDLL, m: int, n: int, k: int, trans_b: Any, clear: Any, extreme: Any, seed: Any
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
    for isa in available(library):
        c = padded(start, 3)
        status = library.harness_gemm_s8(
            ISAS[isa],
            pointer(c),
            stride(c),
            pointer(a),
            stride(a),
            pointer(b),
            stride(b),
            m,
            n,
            k,
            int(trans_b),
            int(clear),
        )
        assert status == 0
        assert np.array_equal(c, want), isa


def test_bf16_rounding_matches_ml_dtypes_and_canonicalizes_nan(library: ctypes.CDLL) -> None:
    import ml_dtypes

    rng = np.random.default_rng(0)
    codes = np.arange(65536, dtype=np.uint32) << 16
    ties = np.concatenate([codes | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    bits = np.concatenate([ties, rng.integers(0, 2**32, 500_000, dtype=np.uint32)])
    x = bits.view(np.float32)
    out = np.empty(x.shape, np.uint16)
    library.harness_bf16(pointer(out), pointer(x), ctypes.c_int64(x.size))
    with np.errstate(all="ignore"):
        want = x.astype(ml_dtypes.bfloat16).view(np.uint16).copy()
    want[np.isnan(x)] = 0x7FC0
    assert np.array_equal(out, want)


def test_scalar_operations_are_single_roundings(library: ctypes.CDLL) -> None:
    library.harness_scalar.restype = ctypes.c_float
    library.harness_scalar.argtypes = [ctypes.c_int32, ctypes.c_float, ctypes.c_float]
    rng = np.random.default_rng(1)
    for a, b in rng.standard_normal((200, 2)).astype(np.float32):
        for operation, want in enumerate((a + b, a - b, a * b, a)):
            assert np.float32(library.harness_scalar(operation, a, b)).tobytes() == want.tobytes()


@pytest.mark.parametrize(
    "file", ["kernelforge_cpu.h", *sorted(f"units/{path.name}" for path in INCLUDE.glob("units/*"))]
)
def test_every_file_compiles_alone_without_warnings(file: str, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{file}"\nint main() {{ return 0; }}\n')
    subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, "-fsyntax-only", f"-I{INCLUDE}", str(source)], check=True)
