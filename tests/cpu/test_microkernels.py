"""The CPU microkernels give the contract's bits on every instruction set this machine has, and on emulated ones."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microkernel_contract import BLOCK, Array, canonical, operands, padded, reference, window
from microkernel_libraries import (
    FORMATS,
    ISAS,
    Emulated,
    Host,
    Library,
    flat,
)


def check(
    library: Library,
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
    want = canonical(reference(a_format, ops[0], ops[1], ops[2], ops[3], start))
    for clear in (False, True) if acc is None else (False,):
        out = padded(np.full((m, n), np.nan, np.float32) if clear else start, extra)
        assert library.mx(isa, out, a, a_scale, w, w_scale, k, a_format, clear) == 0
        got = canonical(np.ascontiguousarray(out))
        where = f"{isa} {a_format} {m}x{n}x{k} {label} clear={clear}"
        assert np.array_equal(got, want), f"{where}: {np.argwhere(got != want)[:4]}"


every_format = pytest.mark.parametrize("a_format", FORMATS)


def test_the_emulated_cpu_runs_neon(library: Library) -> None:
    assert ("neon" in library.isas) == isinstance(library, Emulated) or os.uname().machine == "aarch64"


def test_this_machine_runs_the_portable_engine(library: Library) -> None:
    assert "portable" in library.isas


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
    library: Library,
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
    for isa in library.isas:
        check(library, isa, a_format, m, n, blocks * BLOCK, ops, acc, extra)


@every_format
@pytest.mark.parametrize(
    "shape", [(1, 48, 4096), (3, 40, 2080), (27, 64, 4192), (17, 33, 1184), (260, 40, 576), (530, 36, 96)]
)
def test_shapes_that_cross_the_engines_own_blocking(library: Library, a_format: str, shape: Any) -> None:
    m, n, k = shape
    ops = operands(np.random.default_rng(m), m, n, k, a_format)
    for isa in library.isas:
        check(library, isa, a_format, m, n, k, ops)


@every_format
@pytest.mark.parametrize("byte", [0, 1, 0x4C, 0x4D, 126, 127, 190, 191, 0xFE, 0xFF])
@pytest.mark.parametrize("side", ["a", "w"])
def test_every_kind_of_scale_byte(library: Library, a_format: str, byte: Any, side: Any) -> None:
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
    for isa in library.isas:
        check(library, isa, a_format, m, n, k, (a, a_scale, w, w_scale), label=f"byte {byte}")


@pytest.mark.parametrize("a_format", ["e4m3_e8m0", "e4m3_f32"])
@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_nan_element_makes_its_whole_block_nan(library: Library, a_format: str, code: Any) -> None:
    m, n, k = 5, 20, 128
    a, a_scale, w, w_scale = operands(np.random.default_rng(0), m, n, k, a_format, (120, 134))
    a[2, 40] = code
    for isa in library.isas:
        check(library, isa, a_format, m, n, k, (a, a_scale, w, w_scale))
        acc = np.zeros((m, n), np.float32)
        assert library.mx(isa, acc, a, a_scale, w, w_scale, k, a_format) == 0
        assert np.array_equal(np.isnan(acc).all(1), np.arange(m) == 2)


@pytest.mark.parametrize("a_format", ["e4m3_e8m0", "e4m3_f32"])
def test_every_e4m3_code_in_every_window(library: Library, a_format: str) -> None:
    """Rows of 31 codes up to a largest one; a column takes one element alone, so that each q shows by itself."""
    rows = []
    for largest in range(1, 0x7F):
        codes = np.resize(np.arange(largest + 1), -(-(largest + 1) // 31) * 31).reshape(-1, 31)
        rows.append(np.pad(codes, ((0, 0), (0, 1)), constant_values=largest))
    a = np.concatenate(rows).astype(np.uint8)
    a[:, ::3] |= 0x80
    m = a.shape[0]
    w = np.zeros((BLOCK, BLOCK // 2), np.uint8)
    for column in range(BLOCK):
        w[column, column // 2] = 2 << 4 * (column % 2)  # 1
    w_scale = np.full((BLOCK, 1), 127, np.uint8)
    a_scale = np.full((m, 1), 127, np.uint8) if a_format == "e4m3_e8m0" else np.ones((m, 1), np.float32)
    for isa in library.isas:
        check(library, isa, a_format, m, BLOCK, BLOCK, (a, a_scale, w, w_scale))
        check(library, isa, a_format, 3, BLOCK, BLOCK, (a[-3:], a_scale[-3:], w, w_scale))


@pytest.mark.parametrize(
    "code", [0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0xFFFF, 0x7F7F, 0x7F00, 0x0001, 0x8001, 0x0080, 0x267F, 0x2680]
)
def test_bf16_elements_at_the_edges_of_the_format(library: Library, code: Any) -> None:
    """Inf, NaN, the largest finite, subnormals, and both sides of the read threshold 2^-50."""
    m, n, k = 20, 34, 96
    a, _, w, w_scale = operands(np.random.default_rng(code), m, n, k, "bf16", (120, 134))
    a[4, 33] = code
    a[7] = code
    a[19, 64:] = np.where(np.arange(32) == 5, code, 0)
    for isa in library.isas:
        check(library, isa, "bf16", m, n, k, (a, None, w, w_scale))


def test_bf16_window_takes_one_more_bit_for_the_largest_significand(library: Library) -> None:
    """amax = 255/128 * 2^E would give q = 32640 > 32639, so the exponent is one larger."""
    m, n, k = 3, 17, 64
    a, _, w, w_scale = operands(np.random.default_rng(1), m, n, k, "bf16", (120, 134))
    a &= 0x807F
    a |= np.uint16(110 << 7)
    a[:, 7] = 118 << 7 | 0x7F
    a[:, 40] = 118 << 7 | 0x7E
    assert window((a.astype(np.uint32) << 16).view(np.float32).astype(np.float64))[1].tolist() == [[-7, -8]] * 3
    for isa in library.isas:
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
def test_fp32_scales_at_the_edges(library: Library, scale: Any) -> None:
    m, n, k = 7, 35, 384
    a, a_scale, w, w_scale = operands(np.random.default_rng(2), m, n, k, "e4m3_f32", (100, 150))
    a_scale[1:4, 1] = scale
    a[2, 128:160] = 0
    for isa in library.isas:
        check(library, isa, "e4m3_f32", m, n, k, (a, a_scale, w, w_scale))


@every_format
def test_all_zero_operands_leave_the_accumulator(library: Library, a_format: str) -> None:
    m, n, k = 9, 33, 128
    ops = tuple(x if x is None else np.zeros_like(x) for x in operands(np.random.default_rng(0), m, n, k, a_format))
    acc = np.random.default_rng(3).standard_normal((m, n)).astype(np.float32)
    for isa in library.isas:
        check(library, isa, a_format, m, n, k, ops, acc)
        out = acc.copy()
        assert library.mx(isa, out, ops[0], ops[1], ops[2], ops[3], k, a_format) == 0
        assert np.array_equal(out, acc)


@pytest.mark.parametrize("sign", ["same", "alternating", "cancelling"])
def test_the_largest_block_sums_are_exact(library: Library, sign: Any) -> None:
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
    for isa in library.isas:
        check(library, isa, "bf16", m, n, k, (a, None, w, w_scale))


@pytest.mark.parametrize("a_format", ["e2m1", "e4m3_e8m0", "bf16"])
def test_sums_that_cancel_down_to_the_last_bit(library: Library, a_format: str) -> None:
    """Blocks of very different scales and opposite signs: one rounding more or less would show."""
    rng = np.random.default_rng(11)
    m, n, k = 33, 37, 1024
    a, a_scale, w, w_scale = operands(rng, m, n, k, a_format, (97, 157))
    w[:, 16 * 1 :: 32] = w[:, 16 * 0 :: 32] ^ 0x88
    for isa in library.isas:
        check(library, isa, a_format, m, n, k, (a, a_scale, w, w_scale))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 17])
def test_overflow_is_the_contracts_and_not_the_fused_one(library: Library, m: int) -> None:
    """A term past fp32's range is Inf before it is added, even where the exact sum would be finite."""
    n, k = 33, 64
    a, w = np.zeros((m, k // 2), np.uint8), np.zeros((n, k // 2), np.uint8)
    a[:, 0] = 2  # q = 2 and w = 8, scales 0.25 * 2^63 and 2^63: the term is 2^128
    w[:, 0] = 6
    a_scale, w_scale = np.full((m, k // BLOCK), 190, np.uint8), np.full((n, k // BLOCK), 190, np.uint8)
    acc = np.full((m, n), -3.0e38, np.float32)
    assert np.isposinf(reference("e2m1", a, a_scale, w, w_scale, acc)).all()
    for isa in library.isas:
        check(library, isa, "e2m1", m, n, k, (a, a_scale, w, w_scale), acc)


@every_format
@settings(max_examples=15, deadline=None)
@given(
    cuts=st.tuples(st.integers(0, 45), st.integers(0, 70), st.integers(0, 3)),
    special=st.sampled_from([0.0, 0.02]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bits_do_not_depend_on_how_the_tile_is_split(
    library: Library, a_format: str, cuts: Any, special: float, seed: Any
) -> None:
    m, n, k = 45, 70, 512
    a, a_scale, w, w_scale = operands(np.random.default_rng(seed), m, n, k, a_format, special=special)
    columns = {"e2m1": 2}.get(a_format, 1)  # elements per stored element of A
    per_scale = 128 if a_format == "e4m3_f32" else BLOCK
    at_m, at_n, at_k = cuts[0], cuts[1], cuts[2] * 128
    want = canonical(reference(a_format, a, a_scale, w, w_scale, np.zeros((m, n), np.float32)))
    for isa in library.isas:
        acc = np.zeros((m, n), np.float32)
        for rows in (slice(0, at_m), slice(at_m, m)):
            for cols in (slice(0, at_n), slice(at_n, n)):
                for start, stop in ((0, at_k), (at_k, k)):
                    part_scale = None if a_scale is None else a_scale[rows, start // per_scale : -(-stop // per_scale)]
                    status = library.mx(
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
def test_threads_with_their_own_tiles_give_the_same_bits(library: Library, a_format: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    m, n, k = 40, 256, 512
    a, a_scale, w, w_scale = operands(np.random.default_rng(4), m, n, k, a_format)
    want = canonical(reference(a_format, a, a_scale, w, w_scale, np.zeros((m, n), np.float32)))
    for isa in library.isas:
        acc = np.zeros((m, n), np.float32)

        def tile(col: int, isa: str = isa, acc: Array = acc) -> int:
            cols = slice(col, col + 64)
            return library.mx(isa, acc[:, cols], a, a_scale, w[cols], w_scale[cols], k, a_format)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(tile, range(0, n, 64))) == [0] * 4
        assert np.array_equal(canonical(acc), want), isa


def test_no_byte_outside_the_operands_is_touched(host: Host) -> None:
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
            for isa in host.isas:
                wide = np.full((m, n + 24), 7.0, np.float32)
                acc = wide[:, 8 : 8 + n]
                acc[:] = 0
                assert host.mx(isa, acc, ops[0], ops[1], ops[2], ops[3], k, a_format) == 0
                assert np.array_equal(canonical(np.ascontiguousarray(acc)), want), (isa, a_format, m, n, k)
                assert (wide[:, :8] == 7).all()
                assert (wide[:, 8 + n :] == 7).all()


@pytest.mark.parametrize("shape", [(0, 5, 64), (5, 0, 64), (5, 5, 0)])
def test_empty_tiles_are_accepted_and_change_nothing(host: Host, shape: Any) -> None:
    m, n, k = shape
    acc = np.full((max(m, 1), max(n, 1)), 3.0, np.float32)
    a, w, scale = (np.zeros((5, 64), np.uint8) for _ in range(3))
    assert call_entry(host, acc, m, n, k, a, scale, w, scale, 0) == 0
    assert (acc == 3.0).all()


@pytest.mark.parametrize(
    ("m", "n", "k", "a_format"),
    [(1, 1, 33, 0), (-1, 1, 32, 0), (1, -1, 32, 0), (1, 1, -32, 0)],
)
def test_bad_arguments_return_a_code(host: Host, m: int, n: int, k: int, a_format: int) -> None:
    acc = np.zeros((1, 1), np.float32)
    a, w, scale = (np.zeros((1, 64), np.uint8) for _ in range(3))
    assert call_entry(host, acc, m, n, k, a, scale, w, scale, a_format) == 1


def call_entry(
    host: Host, acc: Array, m: int, n: int, k: int, a: Array, a_scale: Array, w: Array, w_scale: Array, a_format: int
) -> int:
    return host.harness.harness_mx_entry(*flat(acc, a, a_scale, w, w_scale), m, n, k, a_format, 0)


@pytest.mark.parametrize("isa", [*ISAS, "sse5"])
def test_the_environment_chooses_the_engine(host: Host, isa: str) -> None:
    """A present one is used; a missing or unknown one is an error, never another engine."""
    script = (
        "import ctypes, sys\n"
        "lib = ctypes.CDLL(sys.argv[1])\n"
        "buf = (ctypes.c_uint8 * 64)(); acc = (ctypes.c_float * 1)()\n"
        "L = ctypes.c_int64(64)\n"
        "rc = lib.harness_mx_entry(acc, L, buf, L, buf, L, buf, L, buf, L, 1, 1, 32, 0, 0)\n"
        "rc8 = lib.harness_gemm_s8_entry(acc, L, buf, L, buf, L, 1, 1, 1, 0, 1)\n"
        "print(lib.harness_current_isa(), rc, rc8)\n"
    )
    environment = {**os.environ, "KERNELFORGE_CPU_ISA": isa}
    run = subprocess.run(
        [sys.executable, "-c", script, str(host.path)], env=environment, capture_output=True, text=True
    )
    expected = f"{ISAS[isa]} 0 0" if isa in host.isas else "-1 3 3"
    assert run.stdout.strip() == expected, run.stderr
