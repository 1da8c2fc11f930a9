"""What must not change a bit: tiles, threads, the composition of the batch, taking a composite whole, another run."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from gemm_data import FORMATS, Call, assert_same_bits, call, draw, expected
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge import backends
from kernelforge.ops.mxfp4_gemm.op import BUILDER, NEEDS
from kernelforge.runtime import KernelSpec, artifact, executable

N, K, EXPERTS = 70, 288, 3
TILES = [(16, 32, 128), (64, 64, 128), (32, 16, 256), (128, 128, 384)]


def spec(a_format: str, tiles: tuple[int, int, int], experts: int = 0) -> KernelSpec:
    block_M, block_N, block_K = tiles
    schedule = {"block_M": block_M, "block_N": block_N, "block_K": block_K, "threads": 128, "num_stages": 2}
    return KernelSpec.of(BUILDER, NEEDS, N=N, K=K, experts=experts, a_format=a_format, out_dtype="float32", **schedule)


def run(kernel, operands: Call) -> torch.Tensor:
    """Launch a kernel on a call's operands."""
    scale = torch.zeros(1, 1, dtype=torch.uint8) if operands.a_scale is None else operands.a_scale
    weights = [operands.w.view(-1, K // 2), operands.w_scale.view(-1, K // 32)]
    offsets = [] if operands.offsets is None else [operands.offsets]
    out = torch.full((operands.a.shape[0], N), float("nan"))
    kernel(operands.a, scale, *weights, *offsets, out)
    return out


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("a_format", FORMATS)
def test_bits_do_not_depend_on_tile_size(a_format, tiles):
    operands = draw(a_format, 33, N, K, data="codes")
    assert_same_bits(
        run(executable(spec(a_format, tiles), "cpu"), call(operands, a_format)), expected(operands, a_format)
    )


@pytest.mark.parametrize("tiles", TILES[:2])
@pytest.mark.parametrize("a_format", ["e2m1", "bf16"])
def test_bits_of_groups_do_not_depend_on_tile_size(a_format, tiles):
    operands = draw(a_format, 70, N, K, EXPERTS, "codes")
    kernel = executable(spec(a_format, tiles, EXPERTS), "cpu")
    assert_same_bits(run(kernel, call(operands, a_format)), expected(operands, a_format))


@functools.cache
def without_composites(a_format: str, experts: int):
    """The same kernel, every composite lowered from its portable body, compiled for the CPU."""
    cpu = backends.backend("cpu")

    class Portable(type(cpu)):
        version = cpu.version + "-portable"
        composites = frozenset()

        def passes(self, arch):
            from kernelforge import lowering

            return [lowering.lower_composites, *super().passes(arch)]

    portable = Portable()
    directory, info = artifact(spec(a_format, TILES[0], experts), portable, portable.default_arch("cpu"))
    assert "kf_mx_block_accumulate" not in (directory / "source.txt").read_text()
    return portable.load(directory, info, "cpu")


@pytest.mark.parametrize("a_format", FORMATS)
def test_the_microkernel_gives_the_bits_of_the_portable_body(a_format):
    taken = executable(spec(a_format, TILES[0]), "cpu")
    body = without_composites(a_format, 0)

    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        rows=st.integers(1, 40),
        data=st.sampled_from(["normal", "codes", "nan", "huge", "tiny", "scale_nan", "infinity"]),
    )
    def holds(seed, rows, data):
        operands = call(draw(a_format, rows, N, K, data=data, seed=seed), a_format)
        assert_same_bits(run(taken, operands), run(body, operands))

    holds()


def test_the_microkernel_is_really_taken():
    cpu = backends.backend("cpu")
    directory, _ = artifact(spec("e2m1", TILES[0]), cpu, cpu.default_arch("cpu"))
    assert "kf_mx_block_accumulate" in (directory / "source.txt").read_text()


@pytest.mark.parametrize("a_format", FORMATS)
def test_bits_do_not_depend_on_threads(a_format):
    operands = call(draw(a_format, 133, N, K, data="codes"), a_format)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(executable(spec(a_format, TILES[0]), "cpu"), operands))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_same_bits(other, results[0])


@pytest.mark.parametrize("a_format", FORMATS)
def test_bits_do_not_depend_on_how_the_batch_is_split_or_ordered(a_format):
    rows = 40
    operands = call(draw(a_format, rows, N, K, data="codes"), a_format)
    whole = operands.run()
    for cuts in ([1, 2, 17], [16, 32], [39]):
        edges = [0, *cuts, rows]
        parts = [operands.rows(slice(a, b)).run() for a, b in pairwise(edges)]
        assert_same_bits(torch.cat(parts), whole)
    order = torch.from_numpy(np.random.default_rng(0).permutation(rows))
    assert_same_bits(operands.rows(order).run(), whole[order])


@pytest.mark.parametrize("a_format", FORMATS)
def test_each_group_is_a_dense_product(a_format):
    grouped = call(draw(a_format, 40, N, K, EXPERTS, "codes"), a_format)
    out = grouped.run()
    edges = grouped.offsets.tolist()
    assert len(set(edges)) > 2, "more than one group has tokens"
    for expert in range(EXPERTS):
        rows = slice(edges[expert], edges[expert + 1])
        alone = grouped.rows(rows)._replace(w=grouped.w[expert], w_scale=grouped.w_scale[expert], offsets=None)
        assert_same_bits(alone.run(), out[rows])


def test_output_columns_do_not_depend_on_their_neighbours():
    """Tensor parallelism splits N: each slice of the weights gives the same columns."""
    operands = call(draw("e4m3_e8m0", 9, N, K, data="codes"), "e4m3_e8m0")
    whole = operands.run()
    halves = [
        operands._replace(w=operands.w[part].contiguous(), w_scale=operands.w_scale[part].contiguous()).run()
        for part in (slice(0, 35), slice(35, 70))
    ]
    assert_same_bits(torch.cat(halves, 1), whole)


def test_two_runs_give_the_same_bits():
    operands = call(draw("bf16", 133, N, K, data="codes"), "bf16")
    assert_same_bits(operands.run(), operands.run())
