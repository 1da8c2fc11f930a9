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
def _scores(logits, first, tokens, score, found):
    """found[i, e] = the score of token ``first + i``, read; tokens beyond the end have logits of 0."""
    for i, e in T.Parallel(found.shape[0], found.shape[1]):
        logit = T.alloc_var("float32")
        logit = T.float32(0)
        if first + i < tokens:
            logit = logits[first + i, e]
        found[i, e] = read(logit) if score == "softmax" else _score(logit, score)
    if score == "softmax":
        _softmax(found)


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
def _given(index, first, tokens, experts, chosen):
    """chosen[i, s] = the expert that slot s of token ``first + i`` was given; 0 beyond the end."""
    for i, s in T.Parallel(chosen.shape[0], chosen.shape[1]):
        expert = T.alloc_var("int32")
        expert = 0
        if first + i < tokens:
            expert = index[first + i, s]
        chosen[i, s] = T.max(T.min(expert, experts - 1), 0)


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
            _scores(logits, bx * block_T, tokens, score, found)
            if given:
                _given(index, bx * block_T, tokens, experts, chosen)
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


@T.macro
def _slope(logit, found, score):
    """Derivative of a score by its logit, read."""
    x = T.alloc_var("float32")
    y = T.alloc_var("float32")
    x = read(logit)
    if score == "sigmoid":
        y = found * read(sigmoid(T.float32(0) - x))
    else:
        y = read(softplus(x))
        x = (sigmoid(x) * T.float32(0.5)) * rsqrt(y)
        y = T.if_then_else(y == T.float32(0), T.float32(0), x)
    return read(y)


@T.macro
def _slot_gradients(found, chosen, grad, first, tokens, renormalize, scale, of_score):
    """of_score[i, s] = the gradient of the score in slot s of token ``first + i``, from that of its weight."""
    slots = chosen.shape[1]
    for i in T.Parallel(found.shape[0]):
        total = T.alloc_var("float32")
        factor = T.alloc_var("float32")
        common = T.alloc_var("float32")
        value = T.alloc_var("float32")
        total = T.float32(0)
        for s in T.serial(slots):
            total = total + found[i, chosen[i, s]]
        factor = recip(total)
        common = T.float32(0)
        for s in T.serial(slots):
            value = T.float32(0)
            if first + i < tokens:
                value = grad[first + i, s]
            value = read(read(value) * T.float32(scale))
            of_score[i, s] = value
            if renormalize:
                common = common + read(value * read(found[i, chosen[i, s]] * factor))
        if renormalize:
            for s in T.serial(slots):
                value = read(of_score[i, s] - common) * factor
                of_score[i, s] = T.if_then_else(total == T.float32(0), T.float32(0), read(value))


def route_topk_backward(experts, k, score, renormalize, scale, block_T, threads):
    """Gradient of the logits from that of the weights; the scores are computed again.

    Args: as in :func:`route_topk`.
    """
    tokens = T.dynamic("tokens")

    @T.prim_func
    def main(
        grad: T.Tensor((tokens, k), "float32"),
        logits: T.Tensor((tokens, experts), "float32"),
        index: T.Tensor((tokens, k), "int32"),
        logits_grad: T.Tensor((tokens, experts), "float32"),
    ):
        with T.Kernel(T.ceildiv(tokens, block_T), threads=threads) as bx:
            found = T.alloc_shared((block_T, experts), "float32")
            chosen = T.alloc_shared((block_T, k), "int32")
            of_score = T.alloc_shared((block_T, k), "float32")
            inner = T.alloc_shared((block_T,), "float32")
            _scores(logits, bx * block_T, tokens, score, found)
            _given(index, bx * block_T, tokens, experts, chosen)
            _slot_gradients(found, chosen, grad, bx * block_T, tokens, renormalize, scale, of_score)
            for i in T.Parallel(block_T):
                total = T.alloc_var("float32")
                total = T.float32(0)
                if score == "softmax":
                    for s in T.serial(k):
                        total = total + read(of_score[i, s] * found[i, chosen[i, s]])
                inner[i] = total
            for i, e in T.Parallel(block_T, experts):
                value = T.alloc_var("float32")
                taken = T.alloc_var("int32")
                value = T.float32(0)
                taken = 0
                for s in T.serial(k):
                    if chosen[i, s] == e:
                        value = value + of_score[i, s]
                        taken = 1
                if score == "softmax":
                    value = read(value - inner[i]) * found[i, e]
                elif taken == 1:
                    value = read(value) * _slope(logits[T.min(bx * block_T + i, tokens - 1), e], found[i, e], score)
                if bx * block_T + i < tokens:
                    logits_grad[bx * block_T + i, e] = T.reinterpret(_canonical(value), "float32")

    return main
