"""The indexer's scores have the reference's bits on every instruction set of this machine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from microkernel_contract import BLOCK, Array
from microkernel_libraries import ISAS, Host, flat, pointer

from kernelforge.ops.lightning_indexer import reference

UNTOUCHED = np.float32(7)
CODES = {"any": np.arange(256), "largest": [0x77], "smallest": [0xFF], "opposite": [0x77, 0xFF], "few": [0, 0, 0x10]}
"""Bytes that elements are drawn from: 0x77 is twice 6, 0xFF twice -6."""


class Operands(NamedTuple):
    q: Array
    q_scale: Array
    k: Array
    k_scale: Array
    weights: Array
    visible: Array


def draw(
    random: np.random.Generator,
    queries: int,
    entries: int,
    heads: int,
    blocks: int,
    codes: str = "any",
    scales: tuple[int, int] = (122, 125),
) -> Operands:
    """Scale bytes lie between the two of ``scales``, which are included."""

    def elements(*shape: int) -> Array:
        return random.choice(np.array(CODES[codes], np.uint8), (*shape, blocks * BLOCK // 2))

    def bytes_of_scales(*shape: int) -> Array:
        return random.integers(scales[0], scales[1] + 1, (*shape, blocks)).astype(np.uint8)

    weights = random.standard_normal((queries, heads)).astype(np.float32) * random.integers(0, 2, (queries, heads))
    visible = random.integers(-1, entries + 3, queries).astype(np.int32)
    visible[random.integers(queries)] = entries
    return Operands(
        elements(queries, heads),
        bytes_of_scales(queries, heads),
        elements(entries),
        bytes_of_scales(entries),
        weights.astype(np.float32),
        visible,
    )


def check(host: Host, ops: Operands) -> None:
    """Every engine; what a query does not see stays as it is."""
    (queries, heads, width), entries = ops.q.shape, len(ops.k)
    want = reference.indexer_scores(*ops[:5])
    want = np.where(np.isnan(want), np.float32(np.nan), want + np.float32(0))
    want = np.where(np.arange(entries) < ops.visible[:, None], want, UNTOUCHED)
    rows = [x.reshape(-1, x.shape[-1]) for x in ops[:5]]
    for isa in host.isas:
        out = np.full((queries, entries), UNTOUCHED, np.float32)
        sizes = (queries, entries, heads, 2 * width)
        status = host.harness.harness_indexer_scores(ISAS[isa], *flat(out, *rows), pointer(ops.visible), *sizes)
        assert status == 0
        different = np.argwhere(out.view(np.uint32) != want.view(np.uint32))
        assert different.size == 0, f"{isa}: {different[:4]}"


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 3),
    entries=st.integers(1, 70),
    heads=st.sampled_from([1, 2, 3, 4, 5, 8, 31, 32, 33, 64, 70]),
    blocks=st.sampled_from([1, 2, 3, 4, 5, 8]),
    codes=st.sampled_from(sorted(CODES)),
    low=st.sampled_from([0, 60, 74, 77, 90, 122, 187, 190, 250]),
    spread=st.sampled_from([0, 3, 3, 3, 4, 5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_engine_gives_the_references_scores(
    host: Host, queries: int, entries: int, heads: int, blocks: int, codes: str, low: int, spread: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    check(host, draw(random, queries, entries, heads, blocks, codes, (low, low + spread)))


@pytest.mark.parametrize("depth", [1024, 1056])
@pytest.mark.parametrize("codes", ["largest", "opposite"])
def test_the_largest_dots(host: Host, codes: str, depth: int) -> None:
    """Scales that fold to the largest elements, at the longest depth that integer dots take and beyond."""
    ops = draw(np.random.default_rng(0), 2, 33, 4, depth // BLOCK, codes, (125, 125))
    ops.q_scale[..., -1] = ops.k_scale[..., -1] = 122
    check(host, ops)


@pytest.mark.parametrize("side", ["q_scale", "k_scale"])
@pytest.mark.parametrize("byte", [0, 76, 77, 121, 128, 129, 190, 191, 255])
def test_one_scale_unlike_the_others(host: Host, side: str, byte: int) -> None:
    """Zeros beside other scales, and what sends a query or 32 entries the other way."""
    ops = draw(np.random.default_rng(byte), 2, 70, 16, 4, scales=(124, 125))
    getattr(ops, side)[..., 1].flat[5] = byte
    check(host, ops)


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf, 1e-45, -0.0, 2.0**-50, 2.0**-51, 2.0**60, 2.0**61, 3e38])
def test_one_weight_unlike_the_others(host: Host, weight: float) -> None:
    ops = draw(np.random.default_rng(1), 2, 40, 16, 4)
    ops.weights[1, 3] = weight
    check(host, ops)


def test_no_dot_is_positive(host: Host) -> None:
    """Scores are +0, also where every weight is negative."""
    ops = draw(np.random.default_rng(2), 1, 35, 64, 4, "largest")
    ops.k[:] = 0xFF
    check(host, ops._replace(weights=-np.abs(ops.weights)))
