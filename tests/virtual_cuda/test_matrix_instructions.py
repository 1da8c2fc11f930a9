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
from numbered import numbered
from ptx_snippet import entry, lanes, words

from kernelforge_cuda.virtual.launch import KernelFault, PtxError, Schedule, run

RNG = np.random.default_rng(31)
SWIZZLE_WIDTH = {0: 16, 1: 128, 2: 64, 3: 32}


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


def fragment_a(lane: int, i: int, size: int) -> tuple[int, int]:
    """(row, k) of element i of an A fragment (PTX ISA, mma.m16n8k16 for 16-bit, m16n8k32 for 8-bit types)."""
    group, thread = lane >> 2, lane % 4
    if size == 2:
        row = group if i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    row = group if i < 4 or 8 <= i < 12 else group + 8
    return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)


def fragment_b(lane: int, i: int, size: int) -> tuple[int, int]:
    """(k, column) of element i of a B fragment."""
    group, thread = lane >> 2, lane % 4
    if size == 2:
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group


def fragment_c(lane: int, i: int) -> tuple[int, int]:
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)


TYPES: dict[str, tuple[Any, np.ndarray]] = {
    "s8": (np.int8, np.arange(-128, 128)),
    "u8": (np.uint8, np.arange(256)),
    "f16": (np.float16, np.arange(-40, 41)),
    "bf16": (ml_dtypes.bfloat16, np.arange(-100, 101)),
    "e4m3": (ml_dtypes.float8_e4m3fn, np.arange(-12, 13)),
    "e5m2": (ml_dtypes.float8_e5m2, np.arange(-6, 7)),
}
"""By PTX type: what NumPy calls it, and integers that are exact in it and in every sum here."""


def operands(
    a_type: str, a_shape: tuple[int, int], b_type: str, b_shape: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of operands which, taken together, tell every place of A and every place of B from the others."""
    (a_kind, a_values), (b_kind, b_values) = TYPES[a_type], TYPES[b_type]
    a, b = numbered(a_shape, a_values, a_kind), numbered(b_shape, b_values, b_kind)
    return [(a[i % len(a)], b[i % len(b)]) for i in range(max(len(a), len(b)))]


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


# ---- wgmma ----------------------------------------------------------------------------------------------------------
def swizzle(address: int, mode: int) -> int:
    """cute's Swizzle<B, 4, 3> on byte addresses: B = 3, 2, 1 bits for 128, 64 and 32 bytes."""
    bits = {0: 0, 1: 3, 2: 2, 3: 1}[mode]
    return address ^ ((address >> 3) & (((1 << bits) - 1) << 4))


def k_major_place(row: int, k_byte: int, mode: int, leading: int, stride: int) -> int:
    """GMMA canonical K-major layout ((8,m),(T,2)), in bytes, without the swizzle."""
    if mode == 0:
        return row % 8 * 16 + row // 8 * stride + k_byte % 16 + k_byte // 16 * leading
    return row % 8 * SWIZZLE_WIDTH[mode] + row // 8 * stride + k_byte


def mn_major_place(row: int, k: int, mode: int, leading: int, stride: int) -> int:
    """GMMA canonical MN-major layout for 16-bit elements (T = 8), in bytes, without the swizzle."""
    per_chunk = SWIZZLE_WIDTH[mode] // 2
    if mode == 0:
        return row % 8 * 2 + row // 8 * stride + k % 8 * 16 + k // 8 * leading
    return row % per_chunk * 2 + row // per_chunk * leading + k % 8 * SWIZZLE_WIDTH[mode] + k // 8 * stride


def place_operand(
    operand: np.ndarray, mode: int, transposed: bool, base: int, leading: int, stride: int, size: int, advance: int
) -> np.ndarray:
    """`operand` [rows, k] laid out in a shared memory image of `size` bytes, whose first byte has address `base`."""
    image = RNG.integers(0, 256, size).astype(np.uint8)
    element = operand.dtype.itemsize
    raw = np.ascontiguousarray(operand).view(np.uint8).reshape(*operand.shape, element)
    for row, k in itertools.product(range(operand.shape[0]), range(operand.shape[1])):
        plain = (
            mn_major_place(row, k, mode, leading, stride)
            if transposed
            else k_major_place(row, k * element + advance, mode, leading, stride)
        )
        at = swizzle(base + plain, mode) - base
        image[at : at + element] = raw[row, k]
    return image


def descriptor(address: str, mode: int, leading: int, stride: int, target: str) -> str:
    high = (mode << 62) | (stride >> 4) << 32 | (leading >> 4) << 16
    return f"cvt.u64.u32 {target}, {address}; shr.u64 {target}, {target}, 4; or.b64 {target}, {target}, {high};"


def run_wgmma(
    kind: str,
    a: np.ndarray,
    b: np.ndarray,
    *,
    mode_a: int,
    mode_b: int,
    transpose_a: bool = False,
    transpose_b: bool = False,
    registers: bool = False,
    landing: str = "late",
    accumulate: bool = True,
    advance: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """D = A @ B.T + C over one warpgroup; returns D [64, n] by the ISA's accumulator table, and C.

    With ``advance`` both operands begin that many bytes along their rows, and their descriptors point there.
    """
    n, k = b.shape
    integer = kind in ("s8", "u8")
    element = a.dtype.itemsize

    def strides(rows: int, mode: int, transposed: bool) -> tuple[int, int]:
        if not transposed:
            return (128 * (rows // 8) + 128, 128) if mode == 0 else (16, 8 * SWIZZLE_WIDTH[mode])
        if mode == 0:
            return 128 * (rows // 8) + 256, 128
        return 16 * SWIZZLE_WIDTH[mode] + 1024, 8 * SWIZZLE_WIDTH[mode]

    (la, sa), (lb, sb) = strides(64, mode_a, transpose_a), strides(n, mode_b, transpose_b)
    space = 32768
    images = np.concatenate(
        [
            place_operand(a, mode_a, transpose_a, 1024, la, sa, space, advance),
            place_operand(b, mode_b, transpose_b, 1024 + space, lb, sb, space, advance),
        ]
    )
    (c,) = numbered((64, n), np.arange(-32 * n, 32 * n), np.int32 if integer else np.float32)
    out, holder = np.zeros_like(c), np.zeros((128, n // 2), c.dtype)
    for thread, r in itertools.product(range(128), range(n // 2)):
        holder[thread, r] = c[accumulator(thread, r)]
    fragments = np.zeros((128, 4), np.uint32)
    for thread in range(128):
        values = np.array(
            [
                a[fragment_a(thread % 32, i, element)[0] + 16 * (thread // 32), fragment_a(thread % 32, i, element)[1]]
                for i in range(16 // element)
            ],
            a.dtype,
        )
        fragments[thread] = values.view(np.uint32)
    names = ", ".join(f"%c{i}" for i in range(n // 2))
    source_a = "{%r10, %r11, %r12, %r13}" if registers else "%d10"
    flags = (
        ""
        if integer
        else ", 1, 1"
        + (
            ""
            if element == 1
            else (f", {int(transpose_b)}" if registers else f", {int(transpose_a)}, {int(transpose_b)}")
        )
    )
    body = f"""
    mov.u32 %r1, buf; mov.u32 %r2, 0;
    COPY: mad.lo.u32 %r3, %r2, 2048, 0; mad.lo.u32 %r3, %tid, 16, %r3; cvt.u64.u32 %d1, %r3; add.u64 %d1, %a0, %d1;
    add.u32 %r3, %r3, %r1;
    ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%d1]; st.shared.v4.u32 [%r3], {{%r4, %r5, %r6, %r7}};
    add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, {2 * space // 2048}; @%p1 bra COPY;
    fence.proxy.async.shared::cta; bar.sync 0;
    mad.lo.u64 %d2, %t64, 16, %a2; ld.global.v4.u32 {{%r10, %r11, %r12, %r13}}, [%d2];
    add.u32 %r9, %r1, {advance}; add.u32 %r8, %r1, {space + advance};
    {descriptor("%r9", mode_a, la, sa, "%d10")}
    {descriptor("%r8", mode_b, lb, sb, "%d11")}
    mad.lo.u64 %d3, %t64, {n * 2}, %a1;
    {" ".join(f"ld.global.b32 %c{i}, [%d3+{4 * i}];" for i in range(n // 2))}
    setp.ne.u32 %p2, {int(accumulate)}, 0;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n{n}k{k}.{"s32" if integer else "f32"}.{kind}.{kind}
      {{{names}}}, {source_a}, %d11, %p2{flags};
    wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
    {" ".join(f"st.global.b32 [%d3+{4 * i}], %c{i};" for i in range(n // 2))}
    """
    text = entry(body, 3, module=f".shared .align 1024 .b8 buf[{2 * space}];", registers=f".reg .b32 %c<{n // 2}>;")
    run(text, "k", [1], [128], [images, holder, fragments], schedule=Schedule(5, landing, 0.05))
    for thread, r in itertools.product(range(128), range(n // 2)):
        out[accumulator(thread, r)] = holder[thread, r]
    return out, c


def accumulator(thread: int, r: int) -> tuple[int, int]:
    """(row, column) of accumulator register r (PTX ISA, wgmma D fragment)."""
    warp, lane = thread // 32, thread % 32
    return 16 * warp + lane // 4 + 8 * (r // 2 % 2), 8 * (r // 4) + 2 * (lane % 4) + r % 2


def check_wgmma(kind: str, n: int, **how: Any) -> None:
    k = 32 // np.dtype(TYPES[kind][0]).itemsize
    for a, b in operands(kind, (64, k), kind, (n, k)):
        out, c = run_wgmma(kind, a, b, **how)
        product = a.astype(np.float64) @ b.astype(np.float64).T
        np.testing.assert_array_equal(out, product + c if how.get("accumulate", True) else product)


MODES = [(1, 2), (2, 3), (3, 0), (0, 1)]
"""Swizzles of A and of B: of 128 (1), 64 (2), 32 bytes (3), none (0)."""


@pytest.mark.parametrize("kind", ["s8", "bf16", "e4m3"])
@pytest.mark.parametrize(("mode_a", "mode_b"), MODES)
@pytest.mark.parametrize("n", [8, 72])
def test_wgmma_reads_every_k_major_layout(kind: str, mode_a: int, mode_b: int, n: int) -> None:
    check_wgmma(kind, n, mode_a=mode_a, mode_b=mode_b)


@pytest.mark.parametrize("kind", ["s8", "bf16"])
@pytest.mark.parametrize(("mode_a", "mode_b", "advance"), [(1, 1, 32), (1, 1, 96), (1, 2, 32), (2, 1, 32)])
def test_wgmma_reads_from_inside_a_swizzled_row(kind: str, mode_a: int, mode_b: int, advance: int) -> None:
    """As a loop over k does: the swizzle is of the address, wherever in its pattern the operand begins."""
    check_wgmma(kind, 24, mode_a=mode_a, mode_b=mode_b, advance=advance)


@pytest.mark.parametrize(("mode_a", "mode_b"), MODES)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(True, False), (False, True), (True, True)])
def test_wgmma_reads_every_mn_major_layout(mode_a: int, mode_b: int, transpose_a: bool, transpose_b: bool) -> None:
    check_wgmma("bf16", 128, mode_a=mode_a, mode_b=mode_b, transpose_a=transpose_a, transpose_b=transpose_b)


@pytest.mark.parametrize("landing", ["late", "early", "random"])
@pytest.mark.parametrize("kind", ["s8", "bf16", "e4m3"])
def test_wgmma_takes_a_from_registers_and_can_start_at_zero(kind: str, landing: str) -> None:
    check_wgmma(kind, 16, mode_a=1, mode_b=1, registers=True, landing=landing)
    check_wgmma(kind, 16, mode_a=1, mode_b=1, landing=landing, accumulate=False)
