"""CSA and HCA attention: the reference's bits, and what must not change a bit."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

import kernelforge as kf
from kernelforge.ops.compressed_attention import conformance
from kernelforge.ops.compressed_attention.conformance_data import csa, hca, operands
from kernelforge.ops.compressed_attention.plan import BUILDER, NEEDS
from kernelforge.ops.compressed_attention.problem import factor_bits
from kernelforge.runtime import KernelSpec, executable

SEED = 3


tensor = functools.partial(conformance.tensor, home="cpu")


@functools.cache
def want(problem: conformance.Problem) -> np.ndarray:
    return conformance.expected(problem)["out"]


@pytest.mark.parametrize("data", conformance.DATA)
@pytest.mark.parametrize("problem", [csa, hca])
def test_bits_are_the_references(problem, data, device):
    case = problem(SEED, data)
    np.testing.assert_array_equal(conformance.run(case, device)["out"], want(case))


def parts(
    problem: conformance.Problem, splits: int, block_H: int, block_E: int, block_D: int, native: bool = False
) -> np.ndarray:
    """A problem by the kernels of split decode (0 splits: the fused kernel) under a schedule."""
    x, p = operands(problem), problem
    tiles = {"block_H": block_H, "block_E": block_E, "block_D": block_D, "threads": 64}
    shape = {"H": p.H, "D": p.D, "window": p.window}
    finder = {
        "ratio": 1 if p.topk else p.ratio,
        "topk": p.topk,
        "page": p.page,
        "factor_bits": factor_bits(x.scale),
        "native": native,
    }
    Q, slots = p.B * p.S, 2 + -(-(p.topk or p.N) // 128)
    entries = x.entries if x.pages is None else conformance.paged(x.entries, x.pages, p.page)
    selected = np.zeros((Q, 1), np.int32)
    if x.indices is not None:
        chosen = np.sort(np.where(x.indices < 0, 2**31 - 1, x.indices), -1)
        selected = np.where(chosen == 2**31 - 1, -1, chosen).reshape(Q, -1)
    pages = np.zeros(1, np.int32) if x.pages is None else x.pages.reshape(-1)
    sizes = np.array([p.S, p.T, p.N, 0 if x.pages is None else x.pages.shape[1]], np.int32)
    first = [x.q.reshape(-1, p.D), x.kv.reshape(-1, p.D), entries.reshape(-1, p.D), selected]
    places = [x.positions.reshape(-1), x.kv_start, pages, sizes, np.zeros(slots - 2, np.int8)]
    rotation = [np.zeros((Q, 1), np.float32) if y is None else y.reshape(Q, -1) for y in (x.cos, x.sin)]
    out = torch.zeros(Q * p.H, p.D, dtype=torch.bfloat16)
    if splits == 0:
        kernel = executable(KernelSpec.of(f"{BUILDER}attention", NEEDS, rope=p.rope, **shape, **finder, **tiles), "cpu")
        kernel(*map(tensor, [*first, x.sink, *places, *rotation]), out)
    else:
        kernel = executable(
            KernelSpec.of(f"{BUILDER}attention_parts", NEEDS, splits=splits, **shape, **finder, **tiles), "cpu"
        )
        m, l, o = torch.zeros(Q * slots, p.H), torch.zeros(Q * slots, p.H), torch.zeros(Q * slots * p.H, p.D)  # noqa: E741
        kernel(*map(tensor, [*first, *places]), m, l, o)
        del tiles["block_E"]
        merge = executable(KernelSpec.of(f"{BUILDER}attention_merge", NEEDS, rope=p.rope, **shape, **tiles), "cpu")
        merge(m, l, o, *map(tensor, [x.sink, places[-1], *rotation]), out)
    return conformance.bits(out).reshape(x.q.shape)


@pytest.mark.parametrize(
    ("splits", "block_H", "block_E", "block_D"), [(1, 16, 16, 32), (2, 16, 128, 64), (7, 32, 64, 16)]
)
def test_bits_do_not_depend_on_splits_and_tiles(splits, block_H, block_E, block_D):
    case = csa(SEED, "student", S=3)
    np.testing.assert_array_equal(parts(case, splits, block_H, block_E, block_D), want(case))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(threads):
    case = csa(SEED)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        np.testing.assert_array_equal(conformance.run(case, "cpu")["out"], want(case))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("problem", [csa, hca])
def test_a_query_is_the_same_alone_as_in_a_batch(problem):
    case = problem(SEED, "outlier")
    x = operands(case)
    for b, s in ((0, 0), (1, 1)):
        at = np.s_[b : b + 1, s : s + 1]
        entries = tensor(x.entries[b : b + 1])
        options = {"kv_start": tensor(x.kv_start[b : b + 1])}
        if x.cos is not None:
            options |= {"cos": tensor(x.cos[at]), "sin": tensor(x.sin[at])}
        first = (tensor(x.q[at]), tensor(x.kv[b : b + 1]), entries)
        last = (tensor(x.sink), tensor(x.positions[at]))
        if x.indices is None:
            out = kf.hca_attention(*first, *last, ratio=case.ratio, **options)
        else:
            out = kf.csa_attention(*first, tensor(x.indices[at]), *last, **options)
        np.testing.assert_array_equal(conformance.bits(out), want(case)[at])


@pytest.mark.parametrize("cuts", [[7], [1] * 40, [5, 13, 17], [128, 3, 64]])
def test_a_sequence_fed_in_pieces_gives_the_same_bits(cuts):
    """The same queries as one prefill, and piece by piece with the last window - 1 raw entries before each piece."""
    rng = np.random.default_rng(SEED)
    total, H, D, ratio = sum(cuts) + 100, 2, 32, 4
    draw = lambda *shape: torch.from_numpy(rng.standard_normal(shape, np.float32)).bfloat16()  # noqa: E731
    q, kv, entries, sink = draw(1, total, H, D), draw(1, total, D), draw(1, total // ratio, D), torch.zeros(H)
    positions = torch.arange(total)[None]
    whole = kf.hca_attention(q, kv, entries, sink, positions, ratio=ratio)
    at = 0
    for piece in [100, *cuts]:
        start, end = max(0, at - 127), at + piece
        out = kf.hca_attention(
            q[:, at:end].contiguous(),
            kv[:, start:end].contiguous(),
            entries[:, : end // ratio].contiguous(),
            sink,
            positions[:, at:end].contiguous(),
            ratio=ratio,
        )
        assert torch.equal(out.view(torch.int16), whole[:, at:end].view(torch.int16))
        at = end


def test_bits_do_not_depend_on_page_size():
    whole = hca(SEED, page=0)
    x = operands(whole)
    for page in (16, 40):
        n = whole.N // page
        pages = np.random.default_rng(page).permutation(3 * n).reshape(3, n).astype(np.int32)
        cache = np.zeros((3 * n, page, whole.D), np.uint16)
        cache[pages.reshape(-1)] = x.entries.reshape(3 * n, page, whole.D)
        out = kf.hca_attention(
            *map(tensor, (x.q, x.kv, cache, x.sink, x.positions)),
            ratio=whole.ratio,
            kv_start=tensor(x.kv_start),
            block_table=tensor(pages),
        )
        np.testing.assert_array_equal(conformance.bits(out), want(whole))


def test_selected_entries_are_a_set():
    case = csa(SEED, rope=0)
    x = operands(case)
    shuffled = np.random.default_rng(0).permuted(x.indices, axis=-1)
    arguments = map(tensor, (x.q, x.kv, x.entries, shuffled, x.sink, x.positions))
    out = kf.csa_attention(*arguments, kv_start=tensor(x.kv_start))
    np.testing.assert_array_equal(conformance.bits(out), want(case))


def test_native_mode_without_a_matrix_unit_is_what_the_virtual_devices_compute():
    """The portable body (numerators in several tiles: no CPU microkernel) and tensor cores as the executor rounds."""
    case = csa(SEED, "outlier")
    virtual = conformance.run(case, "cuda:virtual", "native")["out"]
    np.testing.assert_array_equal(parts(case, 0, 16, 16, 32, native=True), virtual)


def test_a_query_that_sees_nothing_returns_zero():
    case = replace(csa(SEED), data="unseen")
    assert not want(case).any()
    assert not conformance.run(case, "cpu")["out"].any()


def test_what_a_query_cannot_see_does_not_matter():
    """Not even a NaN: entries that are not selected or not complete, raw ones after the query or before its window."""
    case = hca(SEED, page=0, B=1, S=1, T=300, first=260)
    x = operands(case)
    kv, entries = x.kv.copy(), x.entries.copy()
    start = int(x.kv_start[0])
    kv[0, : 260 - 127 - start] = 0x7FC0
    entries[0, 261 // case.ratio :] = 0x7FC0
    extended = np.concatenate([kv, np.full((1, 3, case.D), 0x7FC0, np.uint16)], 1)
    out = kf.hca_attention(
        *map(tensor, (x.q, extended, entries, x.sink, x.positions)), ratio=case.ratio, kv_start=tensor(x.kv_start)
    )
    np.testing.assert_array_equal(conformance.bits(out), want(case))


def arguments(**changes: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    base = {
        "q": torch.zeros(2, 3, 4, 64, dtype=torch.bfloat16),
        "kv": torch.zeros(2, 5, 64, dtype=torch.bfloat16),
        "entries": torch.zeros(2, 8, 64, dtype=torch.bfloat16),
        "indices": torch.zeros(2, 3, 6, dtype=torch.int32),
        "sink": torch.zeros(4),
        "positions": torch.zeros(2, 3, dtype=torch.int64),
    }
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"q": torch.zeros(2, 3, 4, 64)}, TypeError, "q: given float32"),
        ({"q": torch.zeros(2, 3, 4, 48, dtype=torch.bfloat16)}, ValueError, "multiple of 32"),
        ({"kv": torch.zeros(1, 5, 64, dtype=torch.bfloat16)}, ValueError, "kv: given"),
        ({"entries": None}, TypeError, "entries"),
        ({"indices": torch.full((2, 3, 6), 8, dtype=torch.int32)}, ValueError, "indices: given values from 8 to 8"),
        ({"indices": torch.zeros(2, 3, 6, dtype=torch.int64)}, TypeError, "indices: given int64"),
        ({"sink": torch.zeros(5)}, ValueError, "sink: given"),
        ({"positions": torch.zeros(2, 3)}, TypeError, "positions: given float32"),
        ({"cos": torch.zeros(2, 3, 4)}, ValueError, "sin: missing"),
        ({"cos": torch.zeros(2, 3, 40), "sin": torch.zeros(2, 3, 40)}, ValueError, "rotates 80 channels"),
        ({"block_table": torch.zeros(3, 1, dtype=torch.int32)}, ValueError, "block_table: given"),
        ({"window": 0}, ValueError, "window: given 0"),
        ({"scale": 0.0}, ValueError, "scale: given 0.0"),
        ({"numerics": "fast"}, ValueError, "numerics: csa_attention"),
        ({"q": torch.zeros(2, 3, 64, 4, dtype=torch.bfloat16).transpose(2, 3)}, ValueError, r"q.contiguous\(\)"),
    ],
)
def test_errors_say_what_is_wanted(changes, error, words):
    with pytest.raises(error, match=words):
        kf.csa_attention(**arguments(**changes))


def test_torch_checks_the_registration():
    x = operands(csa(SEED, rope=0))
    given = tuple(map(tensor, (x.q, x.kv, x.entries, x.indices, x.sink, x.positions)))
    rest = (128, 0.125, tensor(x.kv_start), None, None, None, "exact", None)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.kernelforge.csa_attention.default, (*given, *rest), test_utils=checks)
    paged = (*given[:3], *given[4:], 128, 0.125, 4, *rest[2:])
    torch.library.opcheck(torch.ops.kernelforge.hca_attention.default, paged, test_utils=checks)
