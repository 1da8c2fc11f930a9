"""Cutting and rotating rows, and the products of a chunk's entries with queries and gradients."""

import tilelang.language as T

from ....formats.tile import bf16
from ....numerics.attention import CHUNK
from ....numerics.tile.attention import INVISIBLE, clamp_score, cut_rows, float_of, joined, limit, scale_by_power_of_two
from ....numerics.tile.scalar import bits_of, read
from ..heads import group_rows, groups_of


def cut_matrix(D, block_M, threads):
    """Slices [M, 2 D] and exponents of the rows of a matrix (:func:`cut_rows`).

    Args:
        D: static; the number of rows M is dynamic.
        block_M, threads: schedule; never changes a bit.
    """
    M = T.dynamic("M")

    @T.prim_func
    def main(x: T.Tensor((M, D), "uint16"), slices: T.Tensor((M, 2 * D), "int8"), exponents: T.Tensor((M,), "int32")):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as by:
            tile = T.alloc_shared((block_M, D), "uint16")
            high = T.alloc_shared((block_M, D), "int8")
            low = T.alloc_shared((block_M, D), "int8")
            exponent = T.alloc_shared((block_M,), "int32")
            for i, d in T.Parallel(block_M, D):
                code = T.alloc_var("uint16")
                code = T.cast(0, "uint16")
                if by * block_M + i < M:
                    code = x[by * block_M + i, d]
                tile[i, d] = code
            cut_rows(tile, high, low, exponent)
            for i, d in T.Parallel(block_M, D):
                if by * block_M + i < M:
                    slices[by * block_M + i, d] = high[i, d]
                    slices[by * block_M + i, D + d] = low[i, d]
            for i in T.Parallel(block_M):
                if by * block_M + i < M:
                    exponents[by * block_M + i] = exponent[i]

    return main


def rotate_gradient(H, D, rope, block_M, threads):
    """out = the output's gradient, bfloat16 bits, rotated like the queries on the trailing ``rope`` channels.

    Args:
        H, D, rope: static; queries are dynamic.
        block_M, threads: schedule; never changes a bit.
    """
    M, Q = T.dynamic("M"), T.dynamic("Q")
    plain = D - rope

    @T.prim_func
    def main(
        grad: T.Tensor((M, D), "uint16"),
        cos: T.Tensor((Q, rope // 2), "float32"),
        sin: T.Tensor((Q, rope // 2), "float32"),
        out: T.Tensor((M, D), "uint16"),
    ):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as by:
            for i, d in T.Parallel(block_M, D):
                row = by * block_M + i
                if row < M:
                    bits = T.alloc_var("int32")
                    bits = bf16.float32_bits(T.cast(grad[row, d], "int32"))
                    if d >= plain:
                        c = T.alloc_var("float32")
                        c = read(cos[row // H, (d - plain) // 2])
                        s = T.alloc_var("float32")
                        s = read(sin[row // H, (d - plain) // 2])
                        other = T.alloc_var("float32")
                        other = float_of(bf16.float32_bits(T.cast(grad[row, d ^ 1], "int32")))
                        turned = T.alloc_var("float32")
                        if d % 2 == 0:
                            turned = limit(float_of(bits) * c) - limit(other * s)
                        else:
                            turned = limit(float_of(bits) * c) + limit(other * s)
                        turned = limit(turned)
                        bits = bits_of(turned)
                    out[row, d] = T.cast(bf16.encode(bits), "uint16")

    return main


@T.macro
def _dots(left, slices, row, column, width, right, sums, fresh):
    """sums (+)= slice products of rows of ``slices``, from (row, column) on, and a tile; ``left`` is their tile."""
    T.copy(slices[row, column], left[0])
    T.copy(slices[row, width + column], left[1])
    T.gemm(left[0], right[0], sums[0], transpose_B=True, clear_accum=fresh)
    T.gemm(left[0], right[1], sums[1], transpose_B=True, clear_accum=fresh)
    T.gemm(left[1], right[0], sums[1], transpose_B=True)
    T.gemm(left[1], right[1], sums[2], transpose_B=True, clear_accum=fresh)


def attention_products(H, D, factor_bits, block_E, block_D, threads):
    """Scores and gradients of the probabilities, chunk by chunk.

    Args:
        H, D: static. The numbers of queries, chunks and rows are dynamic.
        factor_bits: float32 bits of what scores are multiplied by.
        block_E, block_D, threads: schedule; never changes a bit.

    ``q``, ``grad`` and ``shared`` are slices; ``rows`` lists rows of ``shared`` by chunk, negative for none; ``seen``
    is 1 where a chunk has any. Row ``(chunk * groups + group) * G + head`` of the results is a head's 128 values.
    """
    rows_q, rows_k = T.dynamic("rows_q"), T.dynamic("rows_k")
    chunks, results = T.dynamic("chunks"), T.dynamic("results")
    G, groups = group_rows(H), groups_of(H)
    columns = tuple(range(0, D, block_D))

    @T.prim_func
    def main(
        q: T.Tensor((rows_q, 2 * D), "int8"),
        q_exponents: T.Tensor((rows_q,), "int32"),
        grad: T.Tensor((rows_q, 2 * D), "int8"),
        grad_exponents: T.Tensor((rows_q,), "int32"),
        shared: T.Tensor((rows_k, 2 * D), "int8"),
        shared_exponents: T.Tensor((rows_k,), "int32"),
        rows: T.Tensor((chunks, CHUNK), "int32"),
        seen: T.Tensor((chunks,), "int32"),
        scores: T.Tensor((results, CHUNK), "float32"),
        rises: T.Tensor((results, CHUNK), "float32"),
    ):
        with T.Kernel(CHUNK // block_E, groups, chunks, threads=threads) as (part, group, chunk):
            entry = [T.alloc_shared((block_E, block_D), "int8") for _ in range(2)]
            query = [T.alloc_shared((G, block_D), "int8") for _ in range(2)]
            slope = [T.alloc_shared((G, block_D), "int8") for _ in range(2)]
            exponent = T.alloc_shared((block_E,), "int32")
            score_sums = [T.alloc_fragment((G, block_E), "int32") for _ in range(3)]
            rise_sums = [T.alloc_fragment((G, block_E), "int32") for _ in range(3)]
            if seen[chunk] == 1:
                head = chunk // (chunks // (rows_q // H)) * H + group * G
                for column in columns:
                    for j, k in T.Parallel(block_E, block_D):
                        row = T.alloc_var("int32")
                        row = rows[chunk, part * block_E + j]
                        high = T.alloc_var("int8")
                        high = T.cast(0, "int8")
                        low = T.alloc_var("int8")
                        low = T.cast(0, "int8")
                        if row >= 0:
                            high = shared[row, column + k]
                            low = shared[row, D + column + k]
                        entry[0][j, k] = high
                        entry[1][j, k] = low
                    _dots(query, q, head, column, D, entry, score_sums, column == 0)
                    _dots(slope, grad, head, column, D, entry, rise_sums, column == 0)
                for j in T.Parallel(block_E):
                    row = T.alloc_var("int32")
                    row = rows[chunk, part * block_E + j]
                    exponent[j] = T.if_then_else(row < 0, 0, shared_exponents[T.max(row, 0)])
                for i, j in T.Parallel(G, block_E):
                    at = (chunk * groups + group) * G + i
                    known = T.min(head + i, rows_q - 1)
                    score = T.alloc_var("float32")
                    score = joined(score_sums[0][i, j], score_sums[1][i, j], score_sums[2][i, j])
                    score = scale_by_power_of_two(score, q_exponents[known] + exponent[j] - 30)
                    score = clamp_score(score * float_of(T.int32(factor_bits)))
                    score = T.if_then_else(rows[chunk, part * block_E + j] < 0, T.float32(INVISIBLE), score)
                    scores[at, part * block_E + j] = score
                    rise = T.alloc_var("float32")
                    rise = joined(rise_sums[0][i, j], rise_sums[1][i, j], rise_sums[2][i, j])
                    rise = scale_by_power_of_two(rise, grad_exponents[known] + exponent[j] - 30)
                    rises[at, part * block_E + j] = clamp_score(rise)

    return main
