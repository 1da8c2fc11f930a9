"""Conformance cases of compressed attention, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

from ...runtime import KernelSpec, schedule
from ..spec import Arrays, Case
from . import conformance_backward as backward
from . import reference
from .conformance_data import DATA, Problem, bits, csa, hca, operands, paged, tensor


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: one prefill and one decode shape on every kind of data, and the extents that need no further kernel.
    ``full``: windows, widths, head counts, pages, ratios."""
    for problem in (*_ci(seed), *(_full(seed) if size == "full" else ())):
        yield Case(problem.name, functools.partial(expected, problem), functools.partial(run, problem))
    for problem in gradient_problems(seed, size):
        name = f"gradient/{problem.name}"
        yield Case(name, functools.partial(backward.expected, problem), functools.partial(backward.run, problem))


def _ci(seed: int) -> Iterator[Problem]:
    for data in DATA:
        yield csa(seed, data)
        yield hca(seed, data)
    yield csa(seed, S=0)
    yield csa(seed, N=0)
    yield csa(seed, S=17, first=0, T=17)
    yield hca(seed, first=0, T=2)
    yield hca(seed, B=1, S=1, first=255, T=300)
    yield hca(seed, N=0)


def gradient_problems(seed: int, size: str) -> Iterator[Problem]:
    """Problems whose gradients are compared: in ``ci`` those of one set of kernels, small batches."""
    for data in DATA:
        whole = data == "normal" or size == "full"
        yield csa(seed, data, S=5, B=2 if whole else 1)
        yield hca(seed, data, page=0, B=3 if whole else 2)
    yield csa(seed, S=0)
    yield csa(seed, N=0)
    yield csa(seed, S=17, first=0, T=17)
    if size == "full":
        for D, H in ((32, 1), (96, 70), (512, 64)):
            for data in ("normal", "bits"):
                yield csa(seed, data, window=300, D=D, H=H, topk=7, S=3)
                yield hca(seed, data, window=100, D=D, H=H, ratio=4, page=0, rope=32)


def _full(seed: int) -> Iterator[Problem]:
    for window in (1, 100, 128, 300):
        for D, H in ((32, 1), (96, 17), (512, 64)):
            for data in ("normal", "bits"):
                yield csa(seed, data, window=window, D=D, H=H, topk=7, rope=0)
                yield hca(seed, data, window=window, D=D, H=H, ratio=4, page=0, rope=32)


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """The kernels of prefill and of the backward pass at V4-Flash's head count and width."""
    from .plan import BUILDER, NEEDS
    from .problem import factor_bits

    shape = {"H": 64, "D": 512, "window": 128}
    found = {}
    for variant, topk, ratio in (("csa", 512, 1), ("hca", 0, 128)):
        tiles = dict(
            schedule(
                "compressed_attention",
                device,
                kernel="attention",
                H=64,
                D=512,
                topk=topk,
                queries=4096,
                chunks=6,
                threads=1,
            )
        )
        del tiles["splits"], tiles["merge_block_H"]
        finder = {"ratio": ratio, "topk": topk, "page": 0, "factor_bits": factor_bits(512**-0.5), "native": False}
        found[variant] = KernelSpec.of(f"{BUILDER}attention", NEEDS, rope=0, **shape, **finder, **tiles)
    return {**found, **backward.kernels(device)}


def expected(problem: Problem) -> Arrays:
    """The reference's output."""
    x = operands(problem)
    if x.indices is not None:
        out = reference.csa_attention(
            x.q, x.kv, x.entries, x.indices, x.sink, x.positions, problem.window, x.scale, x.kv_start, x.cos, x.sin
        )
    else:
        out = reference.hca_attention(
            x.q, x.kv, x.entries, x.sink, x.positions, problem.window, x.scale, x.kv_start, problem.ratio, x.cos, x.sin
        )
    return {"out": out}


def run(problem: Problem, device: str, numerics: str = "exact") -> Arrays:
    """The op's output on a device."""
    from ..support import home_of
    from .op import csa_attention, hca_attention

    x = operands(problem)
    put = functools.partial(tensor, home=home_of(device))
    entries = x.entries if x.pages is None else paged(x.entries, x.pages, problem.page)
    options = {
        "kv_start": put(x.kv_start),
        "block_table": put(x.pages),
        "cos": put(x.cos),
        "sin": put(x.sin),
        "numerics": numerics,
        "backend": device,
    }
    first = (put(x.q), put(x.kv), put(entries))
    last = (put(x.sink), put(x.positions), problem.window)
    if x.indices is not None:
        out = csa_attention(*first, put(x.indices), *last, **options)
    else:
        out = hca_attention(*first, *last, ratio=problem.ratio, **options)
    return {"out": bits(out)}
