"""What must not change a bit: tiles, threads, pieces of the entries, the batch, taking composites, another run."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from indexer_data import FORMATS, TOPK, Call, D, H, assert_same, draw, expected, is_bf16

from kernelforge import backends
from kernelforge.ops.lightning_indexer.conformance import DATA
from kernelforge.ops.lightning_indexer.plans import KERNELS, NEEDS, Problem, Stream
from kernelforge.runtime import KernelSpec, artifact, executable

TILES = [(1, 64, 0), (2, 16, 64), (3, 128, 500)]


def spec(kernel: str, **parameters) -> KernelSpec:
    return KernelSpec.of(f"{KERNELS}:{kernel}", NEEDS, threads=16, **parameters)


def select(tiles: tuple[int, int, int], final: bool, qk_format: str = "e2m1") -> KernelSpec:
    block_S, block_T, slack = tiles
    parameters = {"H": H, "D": D, "qk_format": qk_format, "topk": TOPK, "final": final}
    return spec("lightning_indexer", block_S=block_S, block_T=block_T, slack=slack, **parameters)


def run(call: Call, tiles: tuple[int, int, int], pieces: int = 1, kernel=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernels on a call, the entries cut into pieces."""
    S, T = call.q.shape[0], call.k.shape[0]
    qk_format = "bf16" if is_bf16(call.q) else "e2m1"
    piece = -(-T // pieces)
    schedule = {"block_S": tiles[0], "block_T": tiles[1]}
    stream = Stream.of(Problem(1, S, T, H, D, qk_format), schedule, pieces, piece, torch.device("cpu"))
    index = torch.full((S * pieces, TOPK), -7, dtype=torch.int32)
    score = torch.zeros((S * pieces, TOPK), dtype=torch.bfloat16)
    kernel = kernel or executable(select(tiles, pieces == 1, qk_format), "cpu")
    kernel(*stream.operands(*call), index, score)
    if pieces == 1:
        return index, score
    merged = torch.full((S, TOPK), -7, dtype=torch.int32), torch.zeros((S, TOPK), dtype=torch.bfloat16)
    executable(spec("merge_selections", topk=TOPK, slack=64), "cpu")(index, score, *merged)
    return merged


@pytest.mark.parametrize("tiles", TILES)
def test_bits_do_not_depend_on_tile_size(tiles):
    for data in DATA:
        call = draw(5, 300, data, seed=1)
        assert_same(run(call, tiles), expected(call))


@pytest.mark.parametrize("tiles", TILES[1:])
def test_bits_of_bfloat16_do_not_depend_on_tile_size(tiles):
    for data in FORMATS["bf16"]:
        call = draw(5, 300, data, seed=1, qk_format="bf16")
        assert_same(run(call, tiles), expected(call))


@pytest.mark.parametrize("pieces", [2, 7, 23])
def test_bits_do_not_depend_on_pieces(pieces):
    for data in ("normal", "ties", "codes", "scale_nan"):
        call = draw(4, 300, data, seed=2)
        assert_same(run(call, TILES[1], pieces), expected(call))


def test_bits_do_not_depend_on_threads():
    call = draw(40, 300, "codes")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(call.run())
    finally:
        torch.set_num_threads(before)
    for other in results:
        assert_same(other, expected(call))


def test_bits_do_not_depend_on_the_queries_beside_them():
    call = draw(20, 130, "codes")
    whole = call.run()
    for cuts in ([1, 2, 17], [8, 16], [19]):
        edges = [0, *cuts, 20]
        parts = [call.queries(slice(a, b)).run() for a, b in pairwise(edges)]
        assert_same(tuple(torch.cat(x) for x in zip(*parts, strict=True)), whole)
    order = torch.from_numpy(np.random.default_rng(0).permutation(20))
    assert_same(call.queries(order).run(), tuple(x[order] for x in whole))


def test_entries_may_arrive_in_pieces():
    """A query's result depends on the entries it sees, not on how many the cache holds by then."""
    call = draw(6, 200, "normal", "causal")
    whole = call.run()
    for s in range(6):
        held = int(call.kv_len[s])
        alone = call.queries(slice(s, s + 1))._replace(
            k=call.k[:held].contiguous(), k_scale=call.k_scale[:held].contiguous(), kv_len=None
        )
        assert_same(alone.run(), tuple(x[s : s + 1] for x in whole))


def test_two_runs_give_the_same_bits():
    call = draw(20, 300, "codes")
    assert_same(call.run(), call.run())


@functools.cache
def without_composites():
    """The same kernel, every composite lowered from its portable body, compiled for the CPU."""
    cpu = backends.backend("cpu")

    class Portable(type(cpu)):
        version = cpu.version + "-portable"
        composites = frozenset()

        def passes(self, arch):
            from kernelforge import lowering

            return [lowering.lower_composites, *super().passes(arch)]

    portable = Portable()
    directory, info = artifact(select(TILES[1], True), portable, portable.default_arch("cpu"))
    assert "kf_indexer_scores" not in (directory / "source.txt").read_text()
    return portable.load(directory, info, "cpu")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 6),
    entries=st.integers(1, 200),
    data=st.sampled_from(DATA),
)
def test_the_microkernels_give_the_bits_of_the_portable_bodies(seed, queries, entries, data):
    call = draw(queries, entries, data, seed=seed)
    assert_same(run(call, TILES[1]), run(call, TILES[1], kernel=without_composites()))


def test_the_microkernels_are_really_taken():
    cpu = backends.backend("cpu")
    directory, info = artifact(select(TILES[1], True), cpu, cpu.default_arch("cpu"))
    source = (directory / "source.txt").read_text()
    for name in ("kf_indexer_scores", "kf_select_append", "kf_select_reduce", "kf_select_sort"):
        assert name in source
    # Neither the tiles they read elsewhere nor the bodies' own take up memory.
    assert sum(w.nbytes for w in info.workspaces) < 1 << 16
