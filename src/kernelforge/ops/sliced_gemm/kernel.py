"""Products of BF16 and float32 matrices by exact integer dots (contract C4), group by group, as TileLang kernels."""

import tilelang.language as T

from ...numerics.tile.composite import composite
from ...numerics.tile.scalar import STORAGE, stored
from ...numerics.tile.sliced_dot import SLICES, chunk_length, cut, sliced_dot_accumulate
from ...numerics.window import CHUNK


@T.macro
def _load(source, row, rows, column, columns, turned, dtype, tile):
    """tile[i, k] = source[row + i, column + k], of ``source.T`` where turned; columns beyond the end are zeros."""
    for i, k in T.Parallel(tile.shape[0], tile.shape[1]):
        tile[i, k] = T.cast(0, STORAGE[dtype])
        if column + k < columns:
            if turned:
                tile[i, k] = source[column + k, T.min(row + i, rows - 1)]
            else:
                tile[i, k] = source[T.min(row + i, rows - 1), column + k]


def _rows_dot(acc, a, b, where, N, K, length):
    """A region that adds the dots of rows of ``a`` with rows of ``b`` to ``acc``, chunk by chunk.

    Args:
        a, b: matrices, or tiles of them.
        where: variables: the first row and column in ``a``, the first row in ``b``, whose first column is 0.
        N: rows of ``b`` in a group; those of the next take no part.
        K: elements of a row.
        length: of a chunk.
    """
    return composite("rows_dot_accumulate", acc, a, b, *(variable.buffer for variable in where), N=N, K=K, chunk=length)


@T.macro
def _accumulate(acc, a_tile, a_dtype, b_tile, b_dtype):
    """acc[i, j] += the dot of one chunk, row i of ``a_tile`` with row j of ``b_tile``."""
    slices = [T.alloc_shared(b_tile.shape, "int8") for _ in range(SLICES[b_dtype])]
    exponents = T.alloc_shared((b_tile.shape[0],), "int32")
    cut(b_tile, b_dtype, slices, exponents)
    sliced_dot_accumulate(acc, a_tile, a_dtype, slices, exponents, b_tile.shape[0])


@T.macro
def _accumulate_tiles(acc, a_tile, a_dtype, b_tile, b_dtype):
    """The same as a region."""
    start = T.alloc_var("int32")
    start = 0
    with _rows_dot(acc, a_tile, b_tile, (start, start, start), *b_tile.shape, b_tile.shape[1]):
        _accumulate(acc, a_tile, a_dtype, b_tile, b_dtype)


@T.macro
def _store(acc, row, rows, column, first, columns, dtype, out):
    """Rows and columns beyond the ends are dropped; the tile's columns begin at ``first + column`` of ``out``."""
    for i, j in T.Parallel(acc.shape[0], acc.shape[1]):
        if (row + i < rows) & (column + j < columns):
            out[row + i, first + column + j] = stored(acc[i, j], dtype)


def sliced_gemm(groups, N, K, a_dtype, b_dtype, out_dtype, turned, whole, block_M, block_N, threads):
    """out[m, g * N + n] = the dot of a[m, g * K :] with row g * N + n of b, over K.

    Args:
        groups, N, K: static; M is dynamic.
        a_dtype, b_dtype, out_dtype: "bfloat16" (as bits) | "float32".
        turned: b is [groups * K, N]: group g's part has its rows as columns.
        whole: contractions up to 512 (256 of float32 with float32) are one chunk; else all are cut into 128s.
        block_M, block_N, threads: schedule; never changes a bit.
    """
    M = T.dynamic("M")
    length = chunk_length(K, a_dtype, b_dtype) if whole else CHUNK

    @T.prim_func
    def main(
        a: T.Tensor((M, groups * K), STORAGE[a_dtype]),
        b: T.Tensor((groups * K, N) if turned else (groups * N, K), STORAGE[b_dtype]),
        out: T.Tensor((M, groups * N), STORAGE[out_dtype]),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), groups, threads=threads) as (bx, by, bz):
            a_tile = T.alloc_shared((block_M, length), STORAGE[a_dtype])
            b_tile = T.alloc_shared((block_N, length), STORAGE[b_dtype])
            acc = T.alloc_shared((block_M, block_N), "float32")
            T.clear(acc)
            if turned:
                for chunk in T.serial(T.ceildiv(K, length)):
                    _load(a, by * block_M, M, bz * K + chunk * length, (bz + 1) * K, False, a_dtype, a_tile)
                    _load(b, bx * block_N, N, bz * K + chunk * length, (bz + 1) * K, True, b_dtype, b_tile)
                    _accumulate_tiles(acc, a_tile, a_dtype, b_tile, b_dtype)
            else:
                row = T.alloc_var("int32")
                column = T.alloc_var("int32")
                b_row = T.alloc_var("int32")
                row = by * block_M
                column = bz * K
                b_row = bz * N + bx * block_N
                with _rows_dot(acc, a, b, (row, column, b_row), N, K, length):
                    for chunk in T.serial(T.ceildiv(K, length)):
                        _load(a, row, M, column + chunk * length, (bz + 1) * K, False, a_dtype, a_tile)
                        _load(b, b_row, (bz + 1) * N, chunk * length, K, False, b_dtype, b_tile)
                        _accumulate(acc, a_tile, a_dtype, b_tile, b_dtype)
            _store(acc, by * block_M, M, bx * block_N, bz * N, N, out_dtype, out)

    return main


def sliced_gemm_over_rows(groups, M, N, a_dtype, b_dtype, out_dtype, block_M, block_N, threads):
    """out[g * M + m, n] = the dot of column g * M + m of a with column g * N + n of b, over rows in chunks of 128.

    Args: as in :func:`sliced_gemm`; the number of rows is dynamic.
    """
    rows = T.dynamic("rows")

    @T.prim_func
    def main(
        a: T.Tensor((rows, groups * M), STORAGE[a_dtype]),
        b: T.Tensor((rows, groups * N), STORAGE[b_dtype]),
        out: T.Tensor((groups * M, N), STORAGE[out_dtype]),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), groups, threads=threads) as (bx, by, bz):
            a_tile = T.alloc_shared((block_M, CHUNK), STORAGE[a_dtype])
            b_tile = T.alloc_shared((block_N, CHUNK), STORAGE[b_dtype])
            acc = T.alloc_shared((block_M, block_N), "float32")
            T.clear(acc)
            for chunk in T.serial(T.ceildiv(rows, CHUNK)):
                _load(a, bz * M + by * block_M, (bz + 1) * M, chunk * CHUNK, rows, True, a_dtype, a_tile)
                _load(b, bz * N + bx * block_N, (bz + 1) * N, chunk * CHUNK, rows, True, b_dtype, b_tile)
                _accumulate_tiles(acc, a_tile, a_dtype, b_tile, b_dtype)
            _store(acc, bz * M + by * block_M, (bz + 1) * M, bx * block_N, 0, N, out_dtype, out)

    return main
