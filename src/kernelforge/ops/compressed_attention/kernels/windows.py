"""From scores to the windows that gradients are products of."""

import tilelang.language as T

from ....formats.tile import integer
from ....formats.tile import window as windows
from ....numerics.attention import CHUNK, LEAST_EXPONENT, WEIGHT_ONE
from ....numerics.tile.attention import float_of, largest_scores, limit, merge_factors, scale_by_power_of_two, start
from ....numerics.tile.elementary import exp2, recip
from ....numerics.tile.row_sum import row_sum
from ....numerics.tile.scalar import bits_of, not_finite, read
from ..heads import group_rows, groups_of

NO_UNIT = 4096
"""Exponent of the unit of windows whose product is NaN."""

MAGIC = 12582912.0
"""Added to |x| <= 2^22, it leaves RNE(x) in the low bits of the sum."""


def _exponent(amax):
    """Least e with RNE(x * 2^(15 - e)) <= 32639 for float32 bits ``amax`` of x; 0 for 0.

    Significands from 0xFEFF00 carry.
    """
    return T.if_then_else(amax == 0, 0, ((amax + 0x10100) >> 23) - 126)


@T.macro
def _window(x, exponent):
    """RNE(x * 2^(15 - exponent)), in [-32639, 32639]."""
    scaled = T.alloc_var("float32")
    scaled = x * integer.power_of_two(15 - exponent) + T.float32(MAGIC)
    return bits_of(scaled) - 0x4B400000


@T.macro
def _magnitude(x, places):
    """Bits of |x| * 2^places."""
    aligned = T.alloc_var("float32")
    aligned = scale_by_power_of_two(x, places)
    return bits_of(aligned) & integer.MAGNITUDE


@T.macro
def _load(scores, rises, row, t, u):
    for i, j in T.Parallel(t.shape[0], CHUNK):
        t[i, j] = scores[row + i, j]
        u[i, j] = rises[row + i, j]


@T.macro
def _chunk_exponents(shared_exponents, rows, chunk, exponent, largest):
    """Exponents of a chunk's entries, and their largest."""
    for j in T.Parallel(CHUNK):
        row = T.alloc_var("int32")
        row = rows[chunk, j]
        exponent[j] = LEAST_EXPONENT
        if row >= 0:
            exponent[j] = shared_exponents[row]
    for i in T.Parallel(1):
        top = T.alloc_var("int32")
        top = LEAST_EXPONENT
        for j in T.serial(CHUNK):
            top = T.max(top, exponent[j])
        largest[i] = top


@T.macro
def _merge_chunk(t, u, q_exponents, known, largest, m, l, mean):  # noqa: E741
    """The state (m, l, mean) with a chunk of scores ``t`` and gradients ``u``; both are overwritten."""
    heads = t.shape[0]
    chunk_m = T.alloc_shared((heads,), "float32")
    chunk_l = T.alloc_shared((heads,), "float32")
    chunk_mean = T.alloc_shared((heads,), "float32")
    kept = T.alloc_shared((heads,), "float32")
    added = T.alloc_shared((heads,), "float32")
    largest_scores(t, chunk_m)
    for i, j in T.Parallel(heads, CHUNK):
        weight = T.alloc_var("float32")
        weight = exp2(t[i, j] - chunk_m[i]) * T.float32(WEIGHT_ONE)
        u[i, j] = limit(weight * u[i, j])
        t[i, j] = weight + T.float32(MAGIC)
    for i in T.Parallel(heads):
        total = T.alloc_var("int32")
        total = 0
        for j in T.serial(CHUNK):
            total = total + (bits_of(t[i, j]) - 0x4B400000)
        unusable = (q_exponents[known[i]] == windows.UNUSABLE) | (largest[0] == windows.UNUSABLE)
        chunk_l[i] = float_of(T.if_then_else(unusable, integer.FLOAT32_NAN, bits_of(T.cast(total, "float32"))))
    row_sum(u, chunk_mean)
    merge_factors(m, l, chunk_m, chunk_l, kept, added)
    for i in T.Parallel(heads):
        mean[i] = limit(mean[i] * kept[i]) + limit(chunk_mean[i] * added[i])


def attention_windows(H, scale_bits, threads):
    """Windows of every chunk, and the queries' terms of the sinks' gradient.

    Args:
        H: static. The numbers of queries and chunks are dynamic.
        scale_bits: float32 bits of the softmax scale.
        threads: schedule; never changes a bit.

    Windows for the queries' gradient, ``of_query``, are laid out like ``scores``, a row's high slices, then its low
    ones; those for the entries', ``of_entries``, by entry: slices of the probabilities and of the scores' gradients,
    high and low, for every head. ``units`` are the exponents of the units of the products.
    """
    queries, rows_q, rows_k = T.dynamic("queries"), T.dynamic("rows_q"), T.dynamic("rows_k")
    chunks, results, places = T.dynamic("chunks"), T.dynamic("results"), T.dynamic("places")
    G, groups = group_rows(H), groups_of(H)
    P = G * groups

    @T.prim_func
    def main(
        scores: T.Tensor((results, CHUNK), "float32"),
        rises: T.Tensor((results, CHUNK), "float32"),
        q_exponents: T.Tensor((rows_q,), "int32"),
        grad_exponents: T.Tensor((rows_q,), "int32"),
        shared_exponents: T.Tensor((rows_k,), "int32"),
        rows: T.Tensor((chunks, CHUNK), "int32"),
        seen: T.Tensor((chunks,), "int32"),
        sink: T.Tensor((H,), "float32"),
        of_query: T.Tensor((results, 2 * CHUNK), "int8"),
        query_units: T.Tensor((results,), "int32"),
        of_entries: T.Tensor((places, 4 * P), "int8"),
        entry_units: T.Tensor((places, 2 * groups), "int32"),
        of_sink: T.Tensor((queries, P), "float32"),
    ):
        with T.Kernel(groups, queries, threads=threads) as (group, query):
            t = T.alloc_shared((G, CHUNK), "float32")
            u = T.alloc_shared((G, CHUNK), "float32")
            exponent = T.alloc_shared((CHUNK,), "int32")
            largest = T.alloc_shared((1,), "int32")
            known = T.alloc_shared((G,), "int32")
            sinks = T.alloc_shared((G,), "float32")
            sink_m = T.alloc_shared((G,), "float32")
            m = T.alloc_shared((G,), "float32")
            l = T.alloc_shared((G,), "float32")  # noqa: E741
            mean = T.alloc_shared((G,), "float32")
            share = T.alloc_shared((G,), "float32")
            state = T.alloc_shared((G,), "int32")  # 0: a head; 1: one whose gradients are NaN; 2: none at all
            top = T.alloc_shared((3,), "int32")  # largest exponents of gradients and queries; whether a head is NaN
            query_unit = T.alloc_shared((G,), "int32")
            entry_exponent = T.alloc_shared((2, CHUNK), "int32")
            for i in T.Parallel(G):
                known[i] = query * H + T.min(group * G + i, H - 1)
                sinks[i] = sink[T.min(group * G + i, H - 1)]
                mean[i] = T.float32(0)
            start(m, l, [], sinks)
            for i in T.Parallel(G):
                sink_m[i] = m[i]
            for c in T.serial(chunks // queries):
                chunk = query * (chunks // queries) + c
                if seen[chunk] == 1:
                    _load(scores, rises, (chunk * groups + group) * G, t, u)
                    _chunk_exponents(shared_exponents, rows, chunk, exponent, largest)
                    _merge_chunk(t, u, q_exponents, known, largest, m, l, mean)
            for i in T.Parallel(G):
                inverse = T.alloc_var("float32")
                inverse = recip(l[i])
                share[i] = inverse * T.float32(WEIGHT_ONE)
                average = T.alloc_var("float32")
                average = read(mean[i] * inverse)
                mean[i] = average
                unusable = T.alloc_var("int32")
                unusable = T.if_then_else((bits_of(l[i]) & integer.MAGNITUDE) > integer.FLOAT32_INFINITY, 1, 0)
                if not_finite(average):
                    unusable = 1
                if grad_exponents[known[i]] == windows.UNUSABLE:
                    unusable = 1
                weight = T.alloc_var("float32")
                weight = read(exp2(sink_m[i] - m[i]) * share[i])
                term = T.alloc_var("float32")
                term = read(weight * average * T.float32(-1))
                if unusable == 1:
                    term = float_of(T.int32(integer.FLOAT32_NAN))
                of_sink[query, group * G + i] = term
                state[i] = T.if_then_else(group * G + i < H, unusable, 2)
            for i in T.Parallel(3):
                highest = T.alloc_var("int32")
                highest = LEAST_EXPONENT
                for h in T.serial(G):
                    if state[h] < 2:
                        value = T.alloc_var("int32")
                        value = state[h]
                        if i == 0:
                            value = grad_exponents[known[h]]
                        if i == 1:
                            value = q_exponents[known[h]]
                        highest = T.max(highest, value)
                top[i] = highest
            for c in T.serial(chunks // queries):
                chunk = query * (chunks // queries) + c
                if seen[chunk] == 1:
                    _load(scores, rises, (chunk * groups + group) * G, t, u)
                    _chunk_exponents(shared_exponents, rows, chunk, exponent, largest)
                    for i, j in T.Parallel(G, CHUNK):
                        p = T.alloc_var("float32")
                        p = read(exp2(t[i, j] - m[i]) * share[i])
                        s = T.alloc_var("float32")
                        s = read(u[i, j] - mean[i])
                        s = read(p * s)
                        s = read(s * float_of(T.int32(scale_bits)))
                        t[i, j] = T.if_then_else(state[i] == 0, p, T.float32(0))
                        u[i, j] = T.if_then_else(state[i] == 0, s, T.float32(0))
                    for i in T.Parallel(G):
                        amax = T.alloc_var("int32")
                        amax = 0
                        for j in T.serial(CHUNK):
                            amax = T.max(amax, _magnitude(u[i, j], exponent[j] - largest[0]))
                        query_unit[i] = _exponent(amax)
                        query_units[(chunk * groups + group) * G + i] = T.if_then_else(
                            state[i] == 1, NO_UNIT, _exponent(amax) + largest[0] - 30
                        )
                    for i, j in T.Parallel(G, CHUNK):
                        aligned = T.alloc_var("float32")
                        aligned = scale_by_power_of_two(u[i, j], exponent[j] - largest[0])
                        w = T.alloc_var("int32")
                        w = _window(aligned, query_unit[i])
                        of_query[(chunk * groups + group) * G + i, j] = T.cast(windows.high(w), "int8")
                        of_query[(chunk * groups + group) * G + i, CHUNK + j] = T.cast(windows.low(w), "int8")
                    for j in T.Parallel(CHUNK):
                        p_amax = T.alloc_var("int32")
                        p_amax = 0
                        s_amax = T.alloc_var("int32")
                        s_amax = 0
                        for i in T.serial(G):
                            p_amax = T.max(p_amax, _magnitude(t[i, j], grad_exponents[known[i]] - top[0]))
                            s_amax = T.max(s_amax, _magnitude(u[i, j], q_exponents[known[i]] - top[1]))
                        entry_exponent[0, j] = _exponent(p_amax)
                        entry_exponent[1, j] = _exponent(s_amax)
                        entry_units[chunk * CHUNK + j, group] = T.if_then_else(
                            top[2] == 1, NO_UNIT, _exponent(p_amax) + top[0] - 30
                        )
                        entry_units[chunk * CHUNK + j, groups + group] = T.if_then_else(
                            top[2] == 1, NO_UNIT, _exponent(s_amax) + top[1] - 30
                        )
                    for j, i in T.Parallel(CHUNK, G):
                        head = group * G + i
                        aligned = T.alloc_var("float32")
                        aligned = scale_by_power_of_two(t[i, j], grad_exponents[known[i]] - top[0])
                        w = T.alloc_var("int32")
                        w = _window(aligned, entry_exponent[0, j])
                        of_entries[chunk * CHUNK + j, head] = T.cast(windows.high(w), "int8")
                        of_entries[chunk * CHUNK + j, P + head] = T.cast(windows.low(w), "int8")
                        aligned = scale_by_power_of_two(u[i, j], q_exponents[known[i]] - top[1])
                        w = _window(aligned, entry_exponent[1, j])
                        of_entries[chunk * CHUNK + j, 2 * P + head] = T.cast(windows.high(w), "int8")
                        of_entries[chunk * CHUNK + j, 3 * P + head] = T.cast(windows.low(w), "int8")

    return main
