"""Choice of experts: scores, top-k and weights of a tile of tokens in one TileLang kernel."""

import tilelang.language as T

from ...formats.tile.integer import FLOAT32_NAN, canonical_bits
from ...numerics.tile.elementary import exp, recip, recip_positive, rsqrt, sigmoid, softplus
from ...numerics.tile.row_sum import row_sum
from ...numerics.tile.scalar import read

_LOWEST = -(2**31)
_HIGHEST = 2**31 - 1


@T.macro
def _canonical(x):
    """Bits of a float32 as an op writes it: NaN is 0x7FC00000, -0 is +0."""
    bits = T.alloc_var("int32")
    bits = T.reinterpret(x, "int32")
    value = T.alloc_var("int32")
    value = canonical_bits(bits)
    return value


@T.macro
def _score(logit, score):
    x = T.alloc_var("float32")
    x = read(logit)
    if score == "sigmoid":
        x = sigmoid(x)
    else:
        x = read(softplus(x))
        x = T.if_then_else(x == T.float32(0), T.float32(0), x * rsqrt(x))
    return read(x)


@T.macro
def _softmax(found):
    """Rows of logits, already read, become their softmax."""
    rows, experts = found.shape
    top = T.alloc_shared((rows,), "float32")
    total = T.alloc_shared((rows,), "float32")
    for i in T.Parallel(rows):
        largest = T.alloc_var("float32")
        largest = found[i, 0]
        for e in T.serial(1, experts):
            largest = T.if_then_else(found[i, e] > largest, found[i, e], largest)
        top[i] = largest
    for i, e in T.Parallel(rows, experts):
        found[i, e] = exp(found[i, e] - top[i])
    row_sum(found, total)
    for i, e in T.Parallel(rows, experts):
        found[i, e] = read(found[i, e] * recip_positive(total[i]))


@T.macro
def _rank(value):
    """Integer that orders float32 values: NaN lowest, -0 like +0."""
    bits = T.alloc_var("int32")
    bits = _canonical(value)
    ordered = T.if_then_else(bits >= 0, bits, bits ^ T.int32(0x7FFFFFFF))
    return T.if_then_else(bits == FLOAT32_NAN, T.int32(_LOWEST), ordered)


@T.macro
def _select(rank, chosen):
    """chosen[i, s] = expert s of row i by (rank descending, index ascending)."""
    for i in T.Parallel(rank.shape[0]):
        # The next expert is the best of those behind the last one; no rank is the highest integer.
        last = T.alloc_var("int32")
        last_expert = T.alloc_var("int32")
        best = T.alloc_var("int32")
        best_expert = T.alloc_var("int32")
        last = T.int32(_HIGHEST)
        last_expert = -1
        for s in T.serial(chosen.shape[1]):
            best = T.int32(_LOWEST)
            best_expert = -1
            for e in T.serial(rank.shape[1]):
                behind = (rank[i, e] < last) | ((rank[i, e] == last) & (e > last_expert))
                better = (rank[i, e] > best) | (best_expert < 0)
                if behind & better:
                    best = rank[i, e]
                    best_expert = e
            chosen[i, s] = best_expert
            last = best
            last_expert = best_expert


@T.macro
def _weigh(found, chosen, first, tokens, renormalize, scale, weight):
    for i in T.Parallel(found.shape[0]):
        total = T.alloc_var("float32")
        factor = T.alloc_var("float32")
        share = T.alloc_var("float32")
        total = T.float32(0)
        for s in T.serial(chosen.shape[1]):
            total = total + found[i, chosen[i, s]]
        factor = recip(total)
        for s in T.serial(chosen.shape[1]):
            share = found[i, chosen[i, s]]
            if renormalize:
                share = share * factor
                share = read(T.if_then_else(total == T.float32(0), T.float32(0), share))
            share = share * T.float32(scale)
            if first + i < tokens:
                weight[first + i, s] = T.reinterpret(_canonical(share), "float32")


def route_topk(experts, k, score, renormalize, scale, given, block_T, threads):
    """Experts and weights of each token.

    Args:
        experts, k: static extents.
        score: "sqrtsoftplus" | "sigmoid" | "softmax".
        renormalize, scale: of the weights.
        given: the experts are an input (``index``) and not chosen.
        block_T, threads: schedule; never changes a bit.
    """
    tokens = T.dynamic("tokens")

    @T.prim_func
    def main(
        logits: T.Tensor((tokens, experts), "float32"),
        bias: T.Tensor((experts,), "float32"),
        index: T.Tensor((tokens, k), "int32"),
        weight: T.Tensor((tokens, k), "float32"),
    ):
        with T.Kernel(T.ceildiv(tokens, block_T), threads=threads) as bx:
            found = T.alloc_shared((block_T, experts), "float32")
            chosen = T.alloc_shared((block_T, k), "int32")
            for i, e in T.Parallel(block_T, experts):
                logit = T.alloc_var("float32")
                logit = T.float32(0)
                if bx * block_T + i < tokens:
                    logit = logits[bx * block_T + i, e]
                found[i, e] = read(logit) if score == "softmax" else _score(logit, score)
            if score == "softmax":
                _softmax(found)
            if given:
                for i, s in T.Parallel(block_T, k):
                    expert = T.alloc_var("int32")
                    expert = 0
                    if bx * block_T + i < tokens:
                        expert = index[bx * block_T + i, s]
                    chosen[i, s] = T.max(T.min(expert, experts - 1), 0)
            else:
                rank = T.alloc_shared((block_T, experts), "int32")
                for i, e in T.Parallel(block_T, experts):
                    rank[i, e] = _rank(found[i, e] + read(bias[e]))
                _select(rank, chosen)
                for i, s in T.Parallel(block_T, k):
                    if bx * block_T + i < tokens:
                        index[bx * block_T + i, s] = chosen[i, s]
            _weigh(found, chosen, bx * block_T, tokens, renormalize, scale, weight)

    return main
