"""Gradients of queries, of entries and of sinks."""

import tilelang.language as T

from ....formats.tile import bf16, integer
from ....numerics.attention import CHUNK
from ....numerics.tile.attention import float_of, joined, scale_by_power_of_two
from ....numerics.tile.scalar import bits_of, canonical
from ..heads import group_rows, groups_of
from .windows import NO_UNIT


@T.macro
def _multiply(a, b, sums):
    """sums = slice products of two tiles."""
    T.gemm(a[0], b[0], sums[0], transpose_B=True, clear_accum=True)
    T.gemm(a[0], b[1], sums[1], transpose_B=True, clear_accum=True)
    T.gemm(a[1], b[0], sums[1], transpose_B=True)
    T.gemm(a[1], b[1], sums[2], transpose_B=True, clear_accum=True)


@T.macro
def _value(high, cross, low, unit):
    """The product of windows, in units of 2^unit."""
    places = T.alloc_var("int32")
    places = unit
    total = T.alloc_var("float32")
    total = joined(high, cross, low)
    total = scale_by_power_of_two(total, places)
    return T.if_then_else(places == NO_UNIT, float_of(T.int32(integer.FLOAT32_NAN)), total)


def query_gradient(H, D, block_D, threads):
    """The queries' gradient, bfloat16 bits.

    Args:
        H, D: static. The numbers of chunks and rows are dynamic.
        block_D, threads: schedule; never changes a bit.

    ``shared``, ``rows`` and ``seen`` are as in ``attention_products``, ``of_query`` and ``units`` as in
    ``attention_windows``.
    """
    rows_q, rows_k = T.dynamic("rows_q"), T.dynamic("rows_k")
    chunks, results = T.dynamic("chunks"), T.dynamic("results")
    G, groups = group_rows(H), groups_of(H)

    @T.prim_func
    def main(
        of_query: T.Tensor((results, 2 * CHUNK), "int8"),
        units: T.Tensor((results,), "int32"),
        shared: T.Tensor((rows_k, 2 * D), "int8"),
        rows: T.Tensor((chunks, CHUNK), "int32"),
        seen: T.Tensor((chunks,), "int32"),
        q_grad: T.Tensor((rows_q, D), "uint16"),
    ):
        with T.Kernel(D // block_D, groups, rows_q // H, threads=threads) as (block, group, query):
            weight = [T.alloc_shared((G, CHUNK), "int8") for _ in range(2)]
            entry = [T.alloc_shared((block_D, CHUNK), "int8") for _ in range(2)]
            sums = [T.alloc_fragment((G, block_D), "int32") for _ in range(3)]
            total = T.alloc_fragment((G, block_D), "float32")
            T.clear(total)
            for c in T.serial(chunks // (rows_q // H)):
                chunk = query * (chunks // (rows_q // H)) + c
                if seen[chunk] == 1:
                    T.copy(of_query[(chunk * groups + group) * G, 0], weight[0])
                    T.copy(of_query[(chunk * groups + group) * G, CHUNK], weight[1])
                    for d, j in T.Parallel(block_D, CHUNK):
                        row = T.alloc_var("int32")
                        row = rows[chunk, j]
                        high = T.alloc_var("int8")
                        high = T.cast(0, "int8")
                        low = T.alloc_var("int8")
                        low = T.cast(0, "int8")
                        if row >= 0:
                            high = shared[row, block * block_D + d]
                            low = shared[row, D + block * block_D + d]
                        entry[0][d, j] = high
                        entry[1][d, j] = low
                    _multiply(weight, entry, sums)
                    for i, d in T.Parallel(G, block_D):
                        total[i, d] = total[i, d] + _value(
                            sums[0][i, d], sums[1][i, d], sums[2][i, d], units[(chunk * groups + group) * G + i]
                        )
            for i, d in T.Parallel(G, block_D):
                if group * G + i < H:
                    bits = T.alloc_var("int32")
                    bits = bits_of(total[i, d])
                    q_grad[query * H + group * G + i, block * block_D + d] = T.cast(bf16.encode(bits), "uint16")

    return main


@T.macro
def _load_heads(slices, row, column, count, width, tile):
    """tile[.][d, i] = slices[row + i, column + d], high and low; 0 from ``count`` heads on."""
    for d, i in T.Parallel(tile[0].shape[0], tile[0].shape[1]):
        high = T.alloc_var("int8")
        high = T.cast(0, "int8")
        low = T.alloc_var("int8")
        low = T.cast(0, "int8")
        if i < count:
            high = slices[row + i, column + d]
            low = slices[row + i, width + column + d]
        tile[0][d, i] = high
        tile[1][d, i] = low


def entry_gradient(H, D, block_D, threads):
    """totals += the gradients of the rows of ``shared``, query after query; no two batch rows may share a row.

    Args:
        H, D: static. The numbers of batch rows, queries, chunks and rows are dynamic.
        block_D, threads: schedule; never changes a bit.

    ``of_entries`` and ``units`` are as in ``attention_windows``; ``batch`` has an element for every batch row.
    """
    rows_q, rows_k, B = T.dynamic("rows_q"), T.dynamic("rows_k"), T.dynamic("B")
    chunks, places = T.dynamic("chunks"), T.dynamic("places")
    G, groups = group_rows(H), groups_of(H)
    P = G * groups

    @T.prim_func
    def main(
        of_entries: T.Tensor((places, 4 * P), "int8"),
        units: T.Tensor((places, 2 * groups), "int32"),
        grad: T.Tensor((rows_q, 2 * D), "int8"),
        q: T.Tensor((rows_q, 2 * D), "int8"),
        rows: T.Tensor((chunks, CHUNK), "int32"),
        seen: T.Tensor((chunks,), "int32"),
        batch: T.Tensor((B,), "int32"),
        totals: T.Tensor((rows_k, D), "float32"),
    ):
        with T.Kernel(D // block_D, B, threads=threads) as (block, b):
            heads = [T.alloc_shared((block_D, G), "int8") for _ in range(2)]
            weight = [T.alloc_shared((CHUNK, G), "int8") for _ in range(2)]
            sums = [T.alloc_fragment((block_D, CHUNK), "int32") for _ in range(3)]
            terms = T.alloc_shared((block_D, CHUNK), "float32")
            # Rows of chunks and queries: chunk c of this batch row belongs to its query c // (chunks of a query).
            for c in T.serial(chunks // B):
                chunk = b * (chunks // B) + c
                if seen[chunk] == 1:
                    for group in T.serial(groups):
                        row = chunk // (chunks // (rows_q // H)) * H + group * G
                        _load_heads(grad, row, block * block_D, H - group * G, D, heads)
                        T.copy(of_entries[chunk * CHUNK, group * G], weight[0])
                        T.copy(of_entries[chunk * CHUNK, P + group * G], weight[1])
                        _multiply(heads, weight, sums)
                        for d, j in T.Parallel(block_D, CHUNK):
                            terms[d, j] = _value(
                                sums[0][d, j], sums[1][d, j], sums[2][d, j], units[chunk * CHUNK + j, group]
                            )
                        _load_heads(q, row, block * block_D, H - group * G, D, heads)
                        T.copy(of_entries[chunk * CHUNK, 2 * P + group * G], weight[0])
                        T.copy(of_entries[chunk * CHUNK, 3 * P + group * G], weight[1])
                        _multiply(heads, weight, sums)
                        for d, j in T.Parallel(block_D, CHUNK):
                            terms[d, j] = terms[d, j] + _value(
                                sums[0][d, j], sums[1][d, j], sums[2][d, j], units[chunk * CHUNK + j, groups + group]
                            )
                        # One column of the totals to an index: the same one meets every query.
                        for d in T.Parallel(block_D):
                            for j in T.serial(CHUNK):
                                if rows[chunk, j] >= 0:
                                    totals[rows[chunk, j], block * block_D + d] = (
                                        totals[rows[chunk, j], block * block_D + d] + terms[d, j]
                                    )

    return main


def sink_gradient(H, threads):
    """out[h] = the sum over queries of of_sink[query, h], ascending from +0."""
    queries = T.dynamic("queries")
    P = group_rows(H) * groups_of(H)

    @T.prim_func
    def main(of_sink: T.Tensor((queries, P), "float32"), out: T.Tensor((H,), "float32")):
        with T.Kernel(1, threads=threads):
            for h in T.Parallel(H):
                total = T.alloc_var("float32")
                total = T.float32(0)
                for query in T.serial(queries):
                    total = total + of_sink[query, h]
                out[h] = canonical(total)

    return main
