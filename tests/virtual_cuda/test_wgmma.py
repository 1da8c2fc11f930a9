"""wgmma against the ISA's layout tables; see ``test_matrix_instructions.py``."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from matrix_operands import TYPES, fragment_a, operands
from numbered import numbered
from ptx_snippet import entry

from kernelforge_cuda.virtual.launch import Schedule, run

RNG = np.random.default_rng(31)
SWIZZLE_WIDTH = {0: 16, 1: 128, 2: 64, 3: 32}


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
