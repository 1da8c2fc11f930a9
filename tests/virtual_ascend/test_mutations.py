"""Faults put into what TileLang generated: the virtual device finds them.

``slow`` applies every mutation to four kernels; an ordinary run takes every synchronization of the smallest and a
sample of the rest.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "ascend"))

import ascend_kernels as kernels
from ascend_harness import lowered
from exponential_kernel import exponentials
from mutations import Mutation, mutations

from kernelforge.backends.interface import CompileFailed
from kernelforge.lowering.artifact_lint import forbidden_in_source
from kernelforge.numerics import elementary
from kernelforge_ascend import virtual
from kernelforge_ascend.virtual import Schedule, VirtualFault

SCHEDULES = (
    Schedule("late", check=True),
    Schedule("early", check=True),
    Schedule("random", 1, check=True),
    Schedule("random", 2, check=True),
)
Run = Callable[[Path, Schedule, int], bool]
"""Whether a library gives the right bits under a schedule, launched with so many blocks more than it needs."""


def scaled_gemm() -> tuple[str, Run]:
    """A pipelined GEMM: cube and vector cores, double buffers, a tail of rows."""
    M, N, K = 100, 64, 256
    result = lowered(kernels.scaled_gemm, N, K, 64, 64, 64)
    rng = np.random.default_rng(1)
    a, b = rng.integers(-128, 128, (M, K), dtype=np.int8), rng.integers(-128, 128, (N, K), dtype=np.int8)
    sa, sb = rng.random((M, 4), np.float32) + 1, rng.random((N, 4), np.float32) + 1
    want = np.zeros((M, N), np.float32)
    for k in range(4):
        part = slice(64 * k, 64 * k + 64)
        dot = a[:, part].astype(np.int32) @ b[:, part].astype(np.int32).T
        want = want + dot.astype(np.float32) * (sa[:, k : k + 1] * sb[:, k][None])
    return result.source, runner(result.source, {"A": a, "B": b, "SA": sa, "SB": sb, "M": M}, "C", want, 2)


def columns_gemm() -> tuple[str, Run]:
    """Operands that go through UB and a global workspace."""
    M, N, K = 32, 64, 128
    result = lowered(kernels.columns_gemm, M, N, K, 32)
    rng = np.random.default_rng(2)
    a, b = rng.integers(-128, 128, (M, K), dtype=np.int8), rng.integers(-128, 128, (N, K), dtype=np.int8)
    inputs = {"A": a, "B": b}
    inputs |= {w.name: np.zeros(w.nbytes, np.uint8) for w in result.info.workspaces}
    return result.source, runner(result.source, inputs, "C", a.astype(np.int32) @ b.astype(np.int32).T, 1)


def row_sums() -> tuple[str, Run]:
    """One vector core, a fixed tree of sums, a tail of rows."""
    result = lowered(kernels.row_sums, 50, 160, 16)
    x = np.random.default_rng(3).integers(-99, 99, (50, 160)).astype(np.float32)
    return result.source, runner(result.source, {"X": x}, "Y", x.sum(1), 4)


def powers() -> tuple[str, Run]:
    """A pinned exponential per element, each block for its own elements."""
    result = lowered(exponentials, 256)
    x = np.linspace(-30, 30, 256, dtype=np.float32)
    return result.source, runner(result.source, {"X": x}, "Y", elementary.exp2(x), 4)


def runner(source: str, inputs: dict[str, object], output: str, want: np.ndarray, grid: int) -> Run:
    names = [name for _, name in virtual.signature(source).parameters]
    scratch = tuple(name for name in names if name.startswith("workspace"))

    def run(library: Path, schedule: Schedule, blocks: int) -> bool:
        found = np.full(want.shape, 77, want.dtype)
        values = [found if name == output else inputs[name] for name in names]
        virtual.launch(library, values, grid + blocks, schedule, workspaces=scratch)
        return bool(np.array_equal(found.view(np.uint8), want.view(np.uint8)))

    return run


def survives(mutation: Mutation, run: Run) -> bool:
    """True if the lint passes the faulty source and it gives the right bits, without a fault, under every schedule."""
    if forbidden_in_source(mutation.source):
        return False
    directory = Path(tempfile.mkdtemp(prefix="kernelforge-mutation-"))
    try:
        library = virtual.build(mutation.source, directory, checked=True)
        return all(run(library, schedule, mutation.blocks) for schedule in SCHEDULES)
    except (CompileFailed, VirtualFault):
        return False
    finally:
        shutil.rmtree(directory)


KERNELS = {"scaled_gemm": scaled_gemm, "columns_gemm": columns_gemm, "row_sums": row_sums, "powers": powers}


def equivalent(mutation: Mutation) -> bool:
    """Mutations that leave a correct program, each for a reason that can be read off the line."""
    # TileLang puts a barrier where it cannot tell two parts of UB apart; the race checker sees which it needs.
    conservative = mutation.kind == "delete syncthreads"
    # One group of columns has no pitch: 32 int8 columns are one group.
    one_group = mutation.kind == "other fractal pitch" and ", 32, 0, 0);" in mutation.source.split("\n")[mutation.line]
    # A fill with zero ahead of a partial load: what it misses is loaded, or belongs to a row that is not stored.
    tail_fill = mutation.kind == "shifted store" and re.search(r"= (kf_f\(0\)|\(\w+\)0);", mutation.before)
    # Blocks share the tiles by their loop over turns; one beyond the last tile finds none.
    no_turn = mutation.kind == "one block more" and "; ++turn)" in mutation.source
    return conservative or one_group or bool(tail_fill) or no_turn


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_themselves_pass(name):
    source, run = KERNELS[name]()
    assert survives(Mutation("none", 0, "", source), run)


@pytest.mark.parametrize("name", ["scaled_gemm", "columns_gemm"])
def test_every_deleted_wait_and_flag_is_found(name):
    source, run = KERNELS[name]()
    deletions = [m for m in mutations(source) if m.kind.startswith("delete sync_")]
    assert len(deletions) >= 12
    assert [m.name for m in deletions if survives(m, run)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_mutations_of_every_kind_are_found(name, capsys):
    source, run = KERNELS[name]()
    tried = mutations(source)
    survivors = [mutation for mutation in tried if survives(mutation, run)]
    with capsys.disabled():
        print(f"\n{name}: {len(tried) - len(survivors)} of {len(tried)} mutations found")
        for mutation in survivors:
            print("  survives, equivalent" if equivalent(mutation) else "  survives", mutation.name)
    assert len(tried) >= 24
    assert [m.name for m in survivors if not equivalent(m)] == []


def test_every_kind_of_fault_is_among_the_mutations():
    kinds = {mutation.kind for kernel in KERNELS.values() for mutation in mutations(kernel()[0])}
    assert {
        *("delete sync_wait", "delete sync_intra_wait", "delete syncthreads"),
        *("delete sync_notify", "delete sync_intra_arrive"),  # what a commit is here: they say that data is there
        *("other stage", "stuck stage", "stuck stage of a flag", "other event", "other cross-core flag"),
        *("one row less", "short rows", "fewer columns", "delete copy"),
        *("other fractal pitch", "transposed load", "other source stride"),  # the layouts that a swizzle is elsewhere
        *("one block less", "one block more", "one turn less", "one step less"),
        *("contracted product", "approximate exp"),
    } <= kinds


def faulty_powers(kind: str, directory: Path) -> Callable[[], bool]:
    source, run = powers()
    (fault,) = (mutation for mutation in mutations(source) if mutation.kind == kind)
    library = virtual.build(fault.source.replace("exp2f(", "__builtin_exp2f("), directory, checked=True)
    return lambda: run(library, SCHEDULES[0], fault.blocks)


@pytest.mark.parametrize("kind", ["contracted product", "approximate exp", "one block less"])
def test_faults_of_arithmetic_and_grid_change_bits(kind, tmp_path):
    """Whatever the lint says."""
    assert not faulty_powers(kind, tmp_path)()


def test_a_block_too_many_is_stopped_where_it_reads(tmp_path):
    with pytest.raises(VirtualFault, match="of X, which has 1024"):
        faulty_powers("one block more", tmp_path)()


def test_a_sample_of_the_other_mutations_is_found():
    source, run = scaled_gemm()
    others = [m for m in mutations(source) if not m.kind.startswith("delete sync")][::6]
    assert [m.name for m in others if survives(m, run) and not equivalent(m)] == []
