"""Every layout of the Ascend 950's memories, byte by byte: what a call leaves there against a table of its own.

No product is involved, so nothing can cancel: the memories themselves are read, through the machine behind the calls.
The tables say for each element where it belongs, in groups of 32 bytes of columns as the cube unit takes them; every
element of the data is another one, and no two extents are equal.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ascendc import L2, load, mixed, run, then, vector
from numbered import numbered

from kernelforge_ascend.virtual import Schedule, source_directory

FRACTAL, ROW = 512, 32
"""Bytes of a fractal, 16 rows, and of one of its rows."""
TYPES = {"int8_t": np.uint8, "half": np.uint16, "float": np.uint32}
SCHEDULES = (Schedule("late"), Schedule("early"), Schedule("random", 1))
"""Without the checkers, which would stop a program that looks into the machine."""
READER = f"""#include "{source_directory() / "runtime" / "machine.h"}"
inline void kf_copy(__gm__ uint8_t* out, const uint8_t* from, int bytes) {{
  std::memcpy(out, from, bytes);
}}
"""


def read(space: str, nbytes: int) -> str:
    """Once every pipe is done, the first bytes of a memory of the cube core go to Y."""
    return f"    asc_sync();\n    kf_copy(Y, kf::Machine::current()->{space}.base(), {nbytes});\n"


def elements(kind: str, *shape: int) -> list[np.ndarray]:
    """Data of a type for which every place is another one; never 0."""
    dtype = np.dtype(TYPES[kind])
    return numbered(shape, np.arange(1, 256 ** min(dtype.itemsize, 2)), dtype)


def executed(source: str, inputs: list[Any], nbytes: int) -> np.ndarray:
    out = np.zeros(nbytes, np.uint8)
    run(source, [*inputs, out], schedules=SCHEDULES)
    return out


def placed(matrix: np.ndarray, place: Callable[[int, int], int], nbytes: int) -> tuple[np.ndarray, np.ndarray]:
    """A memory image in which ``place(row, column)`` is the byte where an element lies, and which bytes are set."""
    image, known = np.zeros(nbytes, np.uint8), np.zeros(nbytes, bool)
    size = matrix.itemsize
    for row, column in itertools.product(range(matrix.shape[0]), range(matrix.shape[1])):
        at = place(row, column)
        assert not known[at : at + size].any(), "two elements in one place"
        image[at : at + size] = matrix[row, column : column + 1].view(np.uint8)
        known[at : at + size] = True
    return image, known


def in_fractals(size: int, pitch: int) -> Callable[[int, int], int]:
    """Where elements of ``size`` bytes lie: groups of columns, each 32 bytes wide, ``pitch`` bytes apart."""
    return lambda row, column: column * size // ROW * pitch + row * ROW + column * size % ROW


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_loads_into_l1_place_every_element(kind, transposed):
    """Column group, then row, then column within the group, groups ``pitch`` rows apart; a group's rest is zero."""
    size = np.dtype(TYPES[kind]).itemsize
    group = ROW // size
    space = 48 * 1024
    body = (
        "    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>(pitch), 0);\n"
        f"    asc_copy_gm2l1_{'dn2nz' if transposed else 'nd2nz'}((__cbuf__ {kind}*)l1, X, stride, {L2}, rows, "
        "columns, 0, 0);\n"
    )
    scalars = "int32_t stride, int32_t rows, int32_t columns, int32_t pitch"
    source = mixed(f"__gm__ {kind}* X, {scalars}, __gm__ uint8_t* Y", body + read("l1", space), "", READER)
    for rows, columns, pitch in ((48, 80, 64), (21, 45, 32), (1, 33, 16)):
        filled = -(-columns // group) * group
        for matrix in elements(kind, rows, columns):
            lines = matrix.T if transposed else matrix
            stored = np.full((lines.shape[0], lines.shape[1] + 8), 0xEE, matrix.dtype)  # longer than what is read
            stored[:, : lines.shape[1]] = lines
            whole = np.pad(matrix, ((0, 0), (0, filled - columns)))
            image, known = placed(whole, in_fractals(size, pitch * ROW), space)
            found = executed(source, [stored, stored.strides[0], rows, columns, pitch], space)
            np.testing.assert_array_equal(found[known], image[known])


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("part", [(0, 0, 3, 4), (1, 2, 2, 3), (2, 0, 1, 5)])
def test_loads_into_l0_take_fractals_of_a_larger_operand(side, part):
    """From L1 [groups, rows / 16, 16, C0], 4 blocks of rows high, to L0 with another pitch."""
    first_row, first_group, row_blocks, groups = part
    high, wide, pitch, group = 4, 5, 5, 16
    (matrix,) = elements("half", 16 * high, group * wide)
    nbytes = groups * pitch * FRACTAL
    body = (
        f"    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>({16 * high}), 0);\n"
        f"    asc_copy_gm2l1_nd2nz((__cbuf__ half*)l1, X, {32 * wide}, {L2}, {16 * high}, {16 * wide}, 0, 0);\n"
        + then("MTE2", "MTE1")
        + f"    asc_copy_l12l0{side}((__c{side}__ half*)0, (__cbuf__ half*)l1, "
        f"{first_row}, {first_group}, {row_blocks}, {groups}, {high}, {pitch});\n"
    )
    source = mixed("__gm__ half* X, __gm__ uint8_t* Y", body + read(f"l0{side}", nbytes), "", READER)
    taken = matrix[16 * first_row :, group * first_group :][: 16 * row_blocks, : group * groups]
    image, known = placed(taken, in_fractals(2, pitch * FRACTAL), nbytes)
    np.testing.assert_array_equal(executed(source, [matrix], nbytes)[known], image[known])


def one_hot(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operands whose product is ``m + 100 n``: every sum is another one."""
    a, b = np.zeros((m, k), np.int8), np.zeros((n, k), np.int8)
    a[:, 0], a[:, k - 1] = 1, np.arange(m)
    b[:, 0], b[:, k - 1] = np.arange(n) - 20, 1
    b[:, 1], a[:, 1] = np.arange(n) - 20, 99
    return a, b, np.arange(m)[:, None] + 100 * (np.arange(n) - 20)[None]


def product(m: int, n: int, k: int) -> str:
    return (
        f"    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>({m}), 0);\n"
        f"    asc_copy_gm2l1_nd2nz((__cbuf__ int8_t*)l1, A, {k}, {L2}, {m}, {k}, 0, 0);\n"
        f"    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>({n}), 0);\n"
        f"    asc_copy_gm2l1_nd2nz((__cbuf__ int8_t*)(l1 + 16384), B, {k}, {L2}, {n}, {k}, 0, 0);\n"
        + then("MTE2", "MTE1")
        + f"    asc_copy_l12l0a((__ca__ int8_t*)0, (__cbuf__ int8_t*)l1, 0, 0, {m // 16}, {k // 32}, {m // 16}, "
        f"{m // 16});\n"
        f"    asc_copy_l12l0b((__cb__ int8_t*)0, (__cbuf__ int8_t*)(l1 + 16384), 0, 0, {n // 16}, {k // 32}, "
        f"{n // 16}, {n // 16});\n"
        + then("MTE1", "M")
        + f"    asc_mmad(l0c, (__ca__ int8_t*)0, (__cb__ int8_t*)0, {m}, {k}, {n}, 0, true, false, true);\n"
    )


SUMS = "__gm__ int8_t* A, __gm__ int8_t* B, __gm__ uint8_t* Y"


def test_sums_lie_in_l0c_by_groups_of_16_columns():
    m, n, k = 48, 80, 64
    a, b, sums = one_hot(m, n, k)
    image, known = placed(sums.astype(np.int32), lambda r, c: (c // 16 * m * 16 + r * 16 + c % 16) * 4, m * n * 4)
    assert known.all()
    found = executed(mixed(SUMS, product(m, n, k) + read("l0c", m * n * 4), "", READER), [a, b], m * n * 4)
    np.testing.assert_array_equal(found, image)


def test_every_place_of_the_operands_is_one_row_and_one_k():
    """One element of A alone against all of B, whose columns differ in every row: which row and which k it is."""
    m, n, k = 16, 32, 64
    b = ((np.arange(n)[:, None] * 5 + np.arange(k)[None] * 7) % 251 - 125).astype(np.int8)
    source = mixed(SUMS, product(m, n, k) + read("l0c", m * n * 4), "", READER)
    for place in range(0, m * k, 7):
        row, at = divmod(place, k)
        a = np.zeros((m, k), np.int8)
        a[row, at] = 1
        found = executed(source, [a, b], m * n * 4).view(np.int32).reshape(n // 16, m, 16)
        want = np.zeros((m, n), np.int32)
        want[row] = b[:, at]
        np.testing.assert_array_equal(found.transpose(1, 0, 2).reshape(m, n), want)


@pytest.mark.parametrize("dual", [0, 1, 2])
def test_sums_reach_ub_row_by_row(dual):
    """Whole, or the halves of the rows or of the columns to the two vector cores; rows of UB ``pitch`` sums apart."""
    m, n, k = 32, 96, 64
    a, b, sums = one_hot(m, n, k)
    rows, columns = (m // 2 if dual == 1 else m), (n // 2 if dual == 2 else n)
    pitch = columns + 24
    cube = (
        product(m, n, k)
        + then("M", "FIX")
        + (
            f"    asc_copy_l0c2ub((__ubuf__ int32_t*)(ub + 96), l0c, {n}, {m}, {pitch}, {m}, 0, {dual}, "
            "0, 0, 0, 0, 1, 0, 0);\n    asc_sync_intra_arrive(PIPE_FIX, 5);\n    asc_sync_intra_arrive(PIPE_FIX, 21);\n"
        )
    )
    nbytes = rows * pitch * 4
    vectors = (
        "    asc_sync_intra_wait(PIPE_MTE3, 5);\n    asc_sync();\n"
        f"    kf_copy(Y + sid * {nbytes}, ub + 96, {nbytes});\n"
    )
    found = executed(mixed(SUMS, cube, vectors, READER), [a, b], 2 * nbytes)
    halves = {0: [sums], 1: [sums[:rows], sums[rows:]], 2: [sums[:, :columns], sums[:, columns:]]}[dual]
    for core, half in enumerate(halves):
        image, known = placed(half.astype(np.int32), lambda r, c: (r * pitch + c) * 4, nbytes)
        np.testing.assert_array_equal(found[core * nbytes :][:nbytes][known], image[known])


@pytest.mark.parametrize("kind", ["half", "float"])
def test_fills_of_l1_set_whole_rows(kind):
    """``repeat`` runs of ``blk_num`` rows of 32 bytes, ``dst_gap`` rows between; beside them nothing changes."""
    size = np.dtype(TYPES[kind]).itemsize
    (before,) = elements("half", 64, 16)
    body = (
        "    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>(64), 0);\n"
        f"    asc_copy_gm2l1_nd2nz((__cbuf__ half*)l1, X, 32, {L2}, 64, 16, 0, 0);\n    asc_sync_pipe(PIPE_MTE2);\n"
        f"    asc_fill_l1((__cbuf__ {kind}*)((__cbuf__ uint8_t*)l1 + 96), (uint32_t)(0x12345678),\n"
        "      {.repeat = 4, .blk_num = 3, .dst_gap = 5});\n"
    )
    found = executed(mixed("__gm__ half* X, __gm__ uint8_t* Y", body + read("l1", 2048), "", READER), [before], 2048)
    want = before.copy()
    value = np.frombuffer(np.uint32(0x12345678).tobytes()[:size] * (32 // size), np.uint16)
    for run_, row in itertools.product(range(4), range(3)):
        want[3 + run_ * 8 + row] = value
    np.testing.assert_array_equal(found, want.view(np.uint8).reshape(-1))


@pytest.mark.parametrize("kind", ["half", "float"])
def test_rows_between_global_memory_and_ub_keep_both_strides(kind):
    """5 rows of 7 elements, from the middle of longer ones to 64 bytes apart, then out to rows of another pitch."""
    (x,) = elements(kind, 6, 24)
    size = x.itemsize
    out_pitch = 11 * size
    body = (
        f"    asc_copy_gm2ub_align((__ubuf__ uint8_t*)(ub + 32), (__gm__ uint8_t*)(X + 3), 5, {7 * size}, 0, 0, 0, "
        f"{L2}, {24 * size}, 64);\n    asc_sync();\n    kf_copy(Y, ub + 32, 320);\n"
        f"    asc_copy_ub2gm_align((__gm__ uint8_t*)(Y + 320), (__ubuf__ uint8_t*)(ub + 32), 5, {7 * size}, 0, "
        f"{out_pitch}, 64);\n"
    )
    source = vector(f"__gm__ {kind}* X, __gm__ uint8_t* Y", body, READER)
    found = executed(source, [x], 320 + 5 * out_pitch)
    image, known = placed(x[:5, 3:10], lambda r, c: r * 64 + c * size, 320)
    np.testing.assert_array_equal(found[:320][known], image[known])
    image, known = placed(x[:5, 3:10], lambda r, c: r * out_pitch + c * size, 5 * out_pitch)
    np.testing.assert_array_equal(found[320:], image)


def test_bytes_go_from_ub_to_l1_in_bursts():
    """3 bursts of 2 rows of 32 bytes; in UB 1 row between them, in L1 4 rows."""
    (x,) = elements("half", 8, 16)
    vectors = (
        "    if (sid == 0) {\n"
        + load("X", 256)
        + then("MTE2", "MTE3")
        + "    asc_copy_ub2l1((__cbuf__ void*)(l1 + 64), (__ubuf__ void*)ub, 3, 2, 1, 4);\n"
        "    asc_sync_intra_arrive(PIPE_MTE3, 3);\n    }\n"
    )
    cube = "    asc_sync_intra_wait(PIPE_MTE1, 3);\n" + read("l1", 64 + 16 * 32)
    found = executed(mixed("__gm__ half* X, __gm__ uint8_t* Y", cube, vectors, READER), [x], 64 + 16 * 32)
    for burst, row in itertools.product(range(3), range(2)):
        at = 64 + (burst * 6 + row) * 32
        np.testing.assert_array_equal(found[at : at + 32].view(np.uint16), x[burst * 3 + row])
