"""Dispatch plan: a stable counting sort of (token, slot) pairs by expert, in two kernels over chunks of pairs."""

import tilelang.language as T


@T.macro
def _load_chunk(topk, first, slots, ids):
    """ids[i] = the expert of pair ``first + i``, -1 beyond the end."""
    for i in T.Parallel(ids.shape[0]):
        expert = T.alloc_var("int32")
        expert = -1
        if first + i < slots:
            expert = topk[first + i]
        ids[i] = expert


def moe_count(experts, chunk, threads):
    """counts[c, e] = pairs of chunk c that go to expert e.

    Args:
        experts: number of experts; other ids count for none.
        chunk: pairs per chunk.
        threads: schedule; never changes a bit.
    """
    slots = T.dynamic("slots")
    chunks = T.dynamic("chunks")

    @T.prim_func
    def main(topk: T.Tensor((slots,), "int32"), counts: T.Tensor((chunks, experts), "int32")):
        with T.Kernel(chunks, threads=threads) as bx:
            ids = T.alloc_shared((chunk,), "int32")
            _load_chunk(topk, bx * chunk, slots, ids)
            for e in T.Parallel(experts):
                total = T.alloc_var("int32")
                total = 0
                for i in T.serial(chunk):
                    total = total + T.if_then_else(ids[i] == e, 1, 0)
                counts[bx, e] = total

    return main


def moe_place(experts, chunk, threads):
    """Offsets, order and inverse map from the chunks' counts.

    Args: as in :func:`moe_count`, with the same chunk.
    """
    slots = T.dynamic("slots")
    chunks = T.dynamic("chunks")

    @T.prim_func
    def main(
        topk: T.Tensor((slots,), "int32"),
        counts: T.Tensor((chunks, experts), "int32"),
        order: T.Tensor((slots,), "int32"),
        offsets: T.Tensor((experts + 1,), "int32"),
        inverse: T.Tensor((slots,), "int32"),
    ):
        with T.Kernel(chunks, threads=threads) as bx:
            ids = T.alloc_shared((chunk,), "int32")
            totals = T.alloc_shared((experts,), "int32")
            before = T.alloc_shared((experts,), "int32")
            start = T.alloc_shared((experts + 1,), "int32")
            _load_chunk(topk, bx * chunk, slots, ids)
            for e in T.Parallel(experts):
                total = T.alloc_var("int32")
                mine = T.alloc_var("int32")
                total = 0
                mine = 0
                for c in T.serial(chunks):
                    total = total + counts[c, e]
                    mine = mine + T.if_then_else(c < bx, counts[c, e], 0)
                totals[e] = total
                before[e] = mine
            for e in T.Parallel(experts + 1):
                total = T.alloc_var("int32")
                total = 0
                for d in T.serial(experts):
                    total = total + T.if_then_else(d < e, totals[d], 0)
                start[e] = total
                if bx == 0:
                    offsets[e] = total
            for e in T.Parallel(experts):
                row = T.alloc_var("int32")
                row = start[e] + before[e]
                for i in T.serial(chunk):
                    if ids[i] == e:
                        order[row] = bx * chunk + i
                        inverse[bx * chunk + i] = row
                        row = row + 1
            for i in T.Parallel(chunk):
                if bx * chunk + i < slots:
                    if ids[i] < 0 or ids[i] >= experts:
                        inverse[bx * chunk + i] = -1
                    if bx * chunk + i >= start[experts]:
                        order[bx * chunk + i] = -1

    return main
