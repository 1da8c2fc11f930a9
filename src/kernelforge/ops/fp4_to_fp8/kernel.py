"""MXFP4 to E4M3 under one power-of-two scale per group, as a TileLang kernel of integers."""

import tilelang.language as T

from ...formats import e8m0 as scales
from ...formats.tile import e2m1, e4m3, integer
from .reference import HIGHEST_SHIFT, LOWEST_SHIFT

BLOCK = 32
COLUMNS = 128
"""Columns of a group."""

_BLOCKS = COLUMNS // BLOCK
_NEUTRAL = 15
_FREE = 1000
"""Bounds of a block that constrains nothing; as a shift it rounds everything to zero."""

_UNREADABLE = -_FREE
"""Shift of a block whose scale reads as NaN or infinity."""


def _nibbles(shifts):
    """A table of eight small numbers in one immediate; zero, code 0, constrains nothing."""
    word = sum((int(shift) if code else _NEUTRAL) << (4 * code) for code, shift in enumerate(shifts))
    return T.int32(word - ((word >> 31) << 32))


def _larger(x, y):
    return T.if_then_else(x > y, x, y)


def _smaller(x, y):
    return T.if_then_else(x < y, x, y)


def _entry(table, code):
    return (table >> ((code & 7) << 2)) & 15


@T.macro
def _block_bounds(packed, scale, in_range, lowest, highest, largest, infinite):
    """Bounds on the group's exponent g from every block [rows, 4]; blocks outside the matrix constrain nothing."""
    for i, b in T.Parallel(scale.shape[0], _BLOCKS):
        up = T.alloc_var("int32")
        down = T.alloc_var("int32")
        up = _NEUTRAL
        down = _NEUTRAL
        for q in T.serial(BLOCK // 2):
            byte = T.cast(packed[i, b * (BLOCK // 2) + q], "int32")
            up = T.min(up, T.min(_entry(_nibbles(HIGHEST_SHIFT), byte), _entry(_nibbles(HIGHEST_SHIFT), byte >> 4)))
            down = T.min(down, T.min(_entry(_nibbles(-LOWEST_SHIFT), byte), _entry(_nibbles(-LOWEST_SHIFT), byte >> 4)))
        code = T.alloc_var("int32")
        code = T.if_then_else(in_range(i, b), T.cast(scale[i, b], "int32"), 0)
        s = T.alloc_var("int32")
        s = code - scales.BIAS
        counts = T.alloc_var("bool")
        counts = up < _NEUTRAL and s >= scales.LOWEST_READ and s <= scales.HIGHEST_READ
        lowest[i, b] = T.if_then_else(counts, s - up, -_FREE)
        highest[i, b] = T.if_then_else(counts, s + down, _FREE)
        largest[i, b] = T.if_then_else(counts, s, -_FREE)
        infinite[i, b] = T.if_then_else(s > scales.HIGHEST_READ and code != scales.NAN, 1, 0)


@T.macro
def _row_bounds(blocks, rows, tighter):
    """The tightest bound of a row's four blocks."""
    for i in T.Parallel(rows.shape[0]):
        bound = T.alloc_var("int32")
        bound = blocks[i, 0]
        for b in T.serial(1, _BLOCKS):
            bound = tighter(bound, blocks[i, b])
        rows[i] = bound


def fp4_to_fp8(K, group_rows, block_M, threads):
    """E4M3 codes [M, K] and group scales [G, ceil(K / 128)] of packed MXFP4 [M, K / 2], scales [M, K / 32].

    Args:
        K: static, a multiple of 32; M and G = ceil(M / group_rows) are dynamic.
        group_rows: 1 or 128 rows, by 128 columns, under one scale.
        block_M, threads: schedule; never changes a bit. block_M counts for groups of one row.
    """
    M, G = T.dynamic("M"), T.dynamic("G")
    rows = max(block_M, group_rows) if group_rows == 1 else group_rows
    groups = rows // group_rows
    tiles = -(-K // COLUMNS)

    @T.prim_func
    def main(
        packed: T.Tensor((M, K // 2), "uint8"),
        scale: T.Tensor((M, K // BLOCK), "uint8"),
        codes: T.Tensor((M, K), "uint8"),
        group_scale: T.Tensor((G, tiles), "float32"),
        lossy: T.Tensor((G, tiles), "uint8"),
    ):
        with T.Kernel(tiles, T.ceildiv(M, rows), threads=threads) as (bx, by):
            packed_tile = T.alloc_shared((rows, COLUMNS // 2), "uint8")
            scale_tile = T.alloc_shared((rows, _BLOCKS), "uint8")
            code_tile = T.alloc_shared((rows, COLUMNS), "uint8")
            block_lowest = T.alloc_shared((rows, _BLOCKS), "int32")
            block_highest = T.alloc_shared((rows, _BLOCKS), "int32")
            block_largest = T.alloc_shared((rows, _BLOCKS), "int32")
            block_infinite = T.alloc_shared((rows, _BLOCKS), "int32")
            row_lowest = T.alloc_shared((rows,), "int32")
            row_highest = T.alloc_shared((rows,), "int32")
            row_largest = T.alloc_shared((rows,), "int32")
            row_infinite = T.alloc_shared((rows,), "int32")
            exponent = T.alloc_shared((groups,), "int32")
            shift = T.alloc_shared((rows, _BLOCKS), "int32")
            T.copy(packed[by * rows, bx * (COLUMNS // 2)], packed_tile)
            T.copy(scale[by * rows, bx * _BLOCKS], scale_tile)
            _block_bounds(
                packed_tile,
                scale_tile,
                lambda i, b: T.And(by * rows + i < M, bx * _BLOCKS + b < K // BLOCK),
                block_lowest,
                block_highest,
                block_largest,
                block_infinite,
            )
            _row_bounds(block_lowest, row_lowest, _larger)
            _row_bounds(block_highest, row_highest, _smaller)
            _row_bounds(block_largest, row_largest, _larger)
            _row_bounds(block_infinite, row_infinite, _larger)
            for g in T.Parallel(groups):
                low = T.alloc_var("int32")
                high = T.alloc_var("int32")
                most = T.alloc_var("int32")
                unreadable = T.alloc_var("int32")
                low = -_FREE
                high = _FREE
                most = -_FREE
                unreadable = 0
                for r in T.serial(group_rows):
                    low = _larger(low, row_lowest[g * group_rows + r])
                    high = _smaller(high, row_highest[g * group_rows + r])
                    most = _larger(most, row_largest[g * group_rows + r])
                    unreadable = _larger(unreadable, row_infinite[g * group_rows + r])
                best = T.alloc_var("int32")
                best = T.if_then_else(most == -_FREE, 0, _larger(_smaller(most, high), low))
                exponent[g] = best
                if by * groups + g < G:
                    group_scale[by * groups + g, bx] = integer.power_of_two(best)
                    lossy[by * groups + g, bx] = T.cast(T.if_then_else(low > high, 1, unreadable), "uint8")
            for i, b in T.Parallel(rows, _BLOCKS):
                byte = T.alloc_var("int32")
                byte = T.cast(scale_tile[i, b], "int32")
                finite = T.if_then_else(
                    byte < scales.BIAS + scales.LOWEST_READ, _FREE, exponent[i // group_rows] + scales.BIAS - byte
                )
                shift[i, b] = T.if_then_else(byte > scales.BIAS + scales.HIGHEST_READ, _UNREADABLE, finite)
            for i, b, q in T.Parallel(rows, _BLOCKS, BLOCK // 2):
                byte = T.alloc_var("int32")
                places = T.alloc_var("int32")
                byte = T.cast(packed_tile[i, b * (BLOCK // 2) + q], "int32")
                places = shift[i, b]
                code_tile[i, b * BLOCK + 2 * q] = T.cast(_fp8_code(e2m1.low(byte), places), "uint8")
                code_tile[i, b * BLOCK + 2 * q + 1] = T.cast(_fp8_code(e2m1.high(byte), places), "uint8")
            T.copy(code_tile, codes[by * rows, bx * COLUMNS])

    return main


@T.macro
def _fp8_code(code, places):
    """E4M3 code of an E2M1 code's value over 2^places; NaN where the scale is unreadable."""
    doubled = T.alloc_var("float32")
    doubled = T.cast(e2m1.doubled(code), "float32")
    bits = T.alloc_var("int32")
    bits = T.reinterpret(doubled, "int32")
    fp8 = T.alloc_var("int32")
    fp8 = e4m3.encode(bits, places + 1)
    return T.if_then_else(places == _UNREADABLE, e4m3.NAN, fp8)
