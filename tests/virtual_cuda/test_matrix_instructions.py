"""Matrix instructions one by one against the ISA's layout tables, with operands that no wrong layout leaves equal.

In a GEMM a wrong order along k, or a wrong swizzle, cancels when both operands have it; so each fragment and each
descriptor is tested here alone, with tables written from the PTX ISA's formulas and operands in which every element is
another one.
"""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from matrix_operands import TYPES, fragment_a, fragment_b, fragment_c, operands
from numbered import numbered
from ptx_snippet import entry, lanes, words

from kernelforge_cuda.virtual.launch import KernelFault, PtxError, run

RNG = np.random.default_rng(31)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
def test_ldmatrix_and_stmatrix_follow_the_fragment_table(count: int, trans: bool) -> None:
    (matrices,) = numbered((count, 8, 8), np.arange(2**16), np.uint16)
    place = RNG.permutation(8 * count).astype(np.uint32)  # row r of the matrices lies in slot place[r]
    memory = np.zeros((8 * count, 8), np.uint16)
    memory[place] = matrices.reshape(-1, 8)
    out, back = np.zeros((32, count), np.uint32), np.zeros_like(memory)
    names = ", ".join(f"%r{20 + k}" for k in range(count))
    suffix = ".trans" if trans else ""
    body = f"""
    mov.u32 %r1, buf; mad.lo.u64 %d1, %t64, 4, %a1; mov.u32 %r2, 0; setp.lt.u32 %p1, %tid, {8 * count};
    @%p1 ld.global.u32 %r2, [%d1];
    mad.lo.u32 %r2, %r2, 16, %r1; mad.lo.u64 %d2, %t64, 16, %a0; mad.lo.u32 %r3, %tid, 16, %r1;
    @%p1 ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d2]; @%p1 st.shared.v4.u32 [%r3], {{%r4, %r5, %r6, %r7}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16 {{{names}}}, [%r2];
    mad.lo.u64 %d3, %t64, {4 * count}, %a2;
    {" ".join(f"st.global.u32 [%d3+{4 * k}], %r{20 + k};" for k in range(count))}
    bar.sync 0; mov.u32 %r8, 0; mov.u32 %r9, 0; mov.u32 %r10, 0; mov.u32 %r11, 0;
    @%p1 st.shared.v4.u32 [%r3], {{%r8, %r9, %r10, %r11}};
    bar.sync 0;
    stmatrix.sync.aligned.m8n8.x{count}{suffix}.shared.b16 [%r2], {{{names}}};
    bar.sync 0;
    @%p1 ld.shared.v4.u32 {{%r4, %r5, %r6, %r7}}, [%r3]; mad.lo.u64 %d4, %t64, 16, %a3;
    @%p1 st.global.v4.u32 [%d4], {{%r4, %r5, %r6, %r7}};
    """
    text = entry(body, 4, module=".shared .align 16 .b8 buf[512];")
    run(text, "k", [1], [32], [memory, place, out, back])
    for lane, m in itertools.product(range(32), range(count)):
        row, column = lane // 4, 2 * (lane % 4)
        pair = matrices[m][[column, column + 1], row] if trans else matrices[m][row, [column, column + 1]]
        assert out[lane, m] == int(pair[0]) | int(pair[1]) << 16
    np.testing.assert_array_equal(back, memory)


@pytest.mark.parametrize(
    ("a_type", "b_type", "k"),
    [
        ("s8", "s8", 32),
        ("u8", "s8", 32),
        ("s8", "u8", 32),
        ("s8", "s8", 16),
        ("f16", "f16", 16),
        ("bf16", "bf16", 16),
        ("f16", "f16", 8),
        ("bf16", "bf16", 8),
        ("e4m3", "e4m3", 32),
        ("e4m3", "e5m2", 32),
        ("e5m2", "e4m3", 32),
    ],
)
def test_mma_places_every_element(a_type: str, b_type: str, k: int) -> None:
    for a, b in operands(a_type, (16, k), b_type, (k, 8)):
        check_mma(a_type, b_type, k, a, b)


def test_every_element_has_a_scale_of_its_own() -> None:
    rows, columns = 2.0 ** RNG.integers(-60, 60, (16, 1)), 2.0 ** RNG.integers(-50, 60, (1, 8))
    a, b = RNG.integers(-8, 9, (16, 16)) * rows, RNG.integers(-8, 9, (16, 8)) * columns
    c = RNG.integers(-1000, 1000, (16, 8)) * (rows * columns)
    a[3], a[5, 2], a[7, 1], a[8], b[:, 4], c[:, 6] = 0, np.nan, np.inf, 3 * 2.0**-126, 0, 0
    b[:, 7], c[:, 7], c[8] = 2.0**-2, 0, 0
    check_mma("bf16", "bf16", 16, a.astype(ml_dtypes.bfloat16), b.astype(ml_dtypes.bfloat16), c.astype(np.float32))


def check_mma(a_type: str, b_type: str, k: int, a: np.ndarray, b: np.ndarray, start: np.ndarray | None = None) -> None:
    (a_kind, _), (b_kind, _) = TYPES[a_type], TYPES[b_type]
    size = np.dtype(a_kind).itemsize
    integer = a_type in ("s8", "u8")
    c_kind: Any = np.int32 if integer else np.float32
    c = numbered((16, 8), np.arange(-1000, 1000), c_kind)[0] if start is None else start
    per_a, per_b = 16 * k // 32, 8 * k // 32
    # Half-depth shapes use the first half of the registers.
    fa = np.array([[a[fragment_a(lane, i, size)] for i in range(per_a)] for lane in range(32)], a_kind).view(np.uint32)
    fb = np.array([[b[fragment_b(lane, i, size)] for i in range(per_b)] for lane in range(32)], b_kind).view(np.uint32)
    fc = np.array([[c[fragment_c(lane, i)] for i in range(4)] for lane in range(32)], c_kind).view(np.uint32)
    inputs = {f"%xa{i}": fa[:, i].copy() for i in range(fa.shape[1])}
    inputs |= {f"%xb{i}": fb[:, i].copy() for i in range(fb.shape[1])}
    inputs |= {f"%xc{i}": fc[:, i].copy() for i in range(4)}
    group = lambda prefix, n: "{" + ", ".join(f"{prefix}{i}" for i in range(n)) + "}"  # noqa: E731
    kind = "s32" if integer else "f32"
    body = (
        f"mma.sync.aligned.m16n8k{k}.row.col.{kind}.{a_type}.{b_type}.{kind} {group('%z', 4)}, "
        f"{group('%xa', fa.shape[1])}, {group('%xb', fb.shape[1])}, {group('%xc', 4)};"
    )
    out = lanes(body, inputs, {f"%z{i}": c_kind for i in range(4)})
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float64) @ b.astype(np.float64) + c
    for lane, i in itertools.product(range(32), range(4)):
        np.testing.assert_equal(out[f"%z{i}"][lane], np.float32(expected[fragment_c(lane, i)]))


def test_integer_accumulators_wrap_or_saturate() -> None:
    ones = np.full(32, 0x7F7F7F7F, np.uint32)
    inputs = {f"%xa{i}": ones for i in range(4)}
    inputs |= {"%xb0": ones, "%xb1": ones, "%xc": np.full(32, 2**31 - 5, np.uint32)}
    arguments = "{%z, %r1, %r2, %r3}, {%xa0, %xa1, %xa2, %xa3}, {%xb0, %xb1}, {%xc, %xc, %xc, %xc};"
    wrap = lanes(f"mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {arguments}", inputs, {"%z": np.int32})["%z"]
    clamp = lanes(f"mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32 {arguments}", inputs, {"%z": np.int32})[
        "%z"
    ]
    assert set(wrap) == {2**31 - 5 + 32 * 127 * 127 - 2**32}
    assert set(clamp) == {2**31 - 1}


def mma_bf16(a: float, b: float, c: float, rounded: bool = False) -> np.ndarray:
    """All products a*b, sixteen of them, on top of c."""
    code = lambda v: np.full(32, int(np.array(v, ml_dtypes.bfloat16).view(np.uint16)) * 0x10001, np.uint32)  # noqa: E731
    body = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%z, %f1, %f2, %f3}, {%a, %a, %a, %a}, "
        "{%b, %b}, {%c, %c, %c, %c};"
    )
    inputs = {"%a": code(a), "%b": code(b), "%c": np.full(32, c, np.float32)}
    return lanes(body, inputs, {"%z": np.float32}, rounded=rounded)["%z"]


def test_a_sum_that_is_not_exact_is_an_error() -> None:
    assert set(mma_bf16(255.0, 255.0, 2.0**23)) == {2**23 + 16 * 255 * 255}
    assert set(mma_bf16(0.375, 2.0**-20, 0.0)) == {16 * 0.375 * 2.0**-20}
    with pytest.raises(KernelFault, match="not exact in the matrix unit"):
        mma_bf16(255.0, 255.0, 2.0**24)
    with pytest.raises(KernelFault, match="not exact in the matrix unit"):
        mma_bf16(1.0, 2.0**-20, 64.0)


def test_sums_of_native_mode_round_product_by_product() -> None:
    want = np.float32(2.0**24)
    for _ in range(16):
        want = np.float32(want + np.float32(1.5))
    assert want != 2**24 + 16 * 1.5
    assert set(mma_bf16(1.5, 1.0, 2.0**24, rounded=True)) == {want}
    assert np.isnan(mma_bf16(np.inf, 0.0, 1.0, rounded=True)).all()


def test_fp8_units_keep_14_bits() -> None:
    code = lambda v: np.full(32, int(np.array(v, ml_dtypes.float8_e4m3fn).view(np.uint8)) * 0x01010101, np.uint32)  # noqa: E731
    body = (
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%z, %f1, %f2, %f3}, {%a, %a, %a, %a}, "
        "{%b, %b}, {%c, %c, %c, %c};"
    )

    def go(x: float, c: float) -> np.ndarray:
        inputs = {"%a": code(x), "%b": code(x), "%c": np.full(32, c, np.float32)}
        return lanes(body, inputs, {"%z": np.float32})["%z"]

    assert set(go(15, 9183)) == {32 * 225 + 9183}
    with pytest.raises(KernelFault, match="keeps 14 bits"):
        go(15, 9184)


@pytest.mark.parametrize(
    "text",
    [
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f0, %f1, %f2, %f3}, {%r0, %r1, %r2, %r3}, "
        "{%r4, %r5}, {%f0, %f1, %f2, %f3};",
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r0, %r1}, {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%r6, %r7};",
    ],
)
def test_inexact_engines_are_refused(text: str) -> None:
    with pytest.raises(PtxError, match=r"mma.sync"):
        lanes(text, {"%x": words(RNG)}, {"%z": np.uint32})
