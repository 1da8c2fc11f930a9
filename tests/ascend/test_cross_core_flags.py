"""Cross-core flags: one waiting pipe each, arrivals and waits in one order, as few as there are."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ascend_harness import assert_bits, executable

from kernelforge.lowering.tir import tirx
from kernelforge.ops.sliced_gemm.kernel import sliced_gemm
from kernelforge.ops.sliced_gemm.reference import product
from kernelforge_ascend.passes import LoweringError, cross_core_flags
from kernelforge_ascend.passes.rewriter import BufferMap, int32, op, sequence


def step(kind: str, pipe: str, flag) -> tirx.Stmt:
    flag = int32(flag) if isinstance(flag, int) else flag
    return tirx.Evaluate(tirx.Call("handle", op(kind), [int32(4), tirx.StringImm(pipe), flag]))


def arrive(pipe: str, flag) -> list[tirx.Stmt]:
    return [step(cross_core_flags.ARRIVE, pipe, flag)]


def wait(pipe: str, flag) -> list[tirx.Stmt]:
    return [step(cross_core_flags.WAIT, pipe, flag)]


def both(make, pipe: str, flag) -> list[tirx.Stmt]:
    """On the cube core, for each vector core."""
    return make(pipe, flag) + make(pipe, flag + 16)


def repeated(name: str, extent, body) -> list[tirx.Stmt]:
    variable = tirx.Var(name, "int32")
    return [tirx.For(variable, int32(0), extent, tirx.ForKind.SERIAL, sequence(body(variable)))]


def function(cube: list[tirx.Stmt], vector: list[tirx.Stmt]) -> tirx.PrimFunc:
    blocks = [
        tirx.SBlock([], [], [], name, tirx.SeqStmt([*body, tirx.Evaluate(int32(0))]))
        for name, body in (("CUBE", cube), ("VECTOR", vector))
    ]
    return tirx.PrimFunc([], tirx.SeqStmt(blocks))


def steps(allocated: tirx.PrimFunc) -> list[tuple[str, str, str, str]]:
    return [
        ("arrive" if s.arrives else "wait", s.core, s.pipe, str(s.flag))
        for s in cross_core_flags._Program(allocated).steps
    ]


def waiting_pipes(allocated: tirx.PrimFunc) -> dict[tuple[str, str], set[str]]:
    found = defaultdict(set)
    for kind, core, pipe, flag in steps(allocated):
        if kind == "wait":
            found[core, flag].add(pipe)
    return found


def test_two_waiting_pipes_get_a_flag_each():
    cube = both(arrive, "PIPE_MTE2", 3) + both(arrive, "PIPE_FIX", 3)
    shared = function(cube, wait("PIPE_MTE3", 3) + wait("PIPE_V", 3))
    assert cross_core_flags.two_pipes_wait(shared)
    assert steps(cross_core_flags.allocate(shared)) == [
        ("arrive", "CUBE", "PIPE_MTE2", "0"),
        ("arrive", "CUBE", "PIPE_MTE2", "16"),
        ("arrive", "CUBE", "PIPE_FIX", "1"),
        ("arrive", "CUBE", "PIPE_FIX", "17"),
        ("wait", "VECTOR", "PIPE_MTE3", "0"),
        ("wait", "VECTOR", "PIPE_V", "1"),
    ]


def test_flags_with_one_waiting_pipe_are_left_alone():
    fine = function(both(arrive, "PIPE_FIX", 2) + both(wait, "PIPE_FIX", 5), wait("PIPE_V", 2) + arrive("PIPE_V", 5))
    assert cross_core_flags.allocate(fine).same_as(fine)


def test_flags_are_shared_in_one_order_where_they_run_out():
    cube, vector = [], []
    for _ in range(12):
        cube += both(arrive, "PIPE_MTE2", 0) + both(arrive, "PIPE_FIX", 0)
        vector += wait("PIPE_MTE3", 0) + wait("PIPE_V", 0)
    allocated = cross_core_flags.allocate(function(cube, vector))
    assert waiting_pipes(allocated) == {("VECTOR", "0"): {"PIPE_MTE3"}, ("VECTOR", "1"): {"PIPE_V"}}
    assert len(steps(allocated)) == len(cube) + len(vector)


def test_no_flag_holds_more_arrivals_than_it_can_count():
    cube, vector = [], []
    for number in range(20):
        cube += both(arrive, "PIPE_MTE2", number % 2)
        vector += wait("PIPE_MTE3", number % 2)
    cube, vector = cube + both(arrive, "PIPE_FIX", 0), vector + wait("PIPE_V", 0)
    allocated = cross_core_flags.allocate(function(cube, vector))
    flags = [flag for kind, core, _, flag in steps(allocated) if (kind, core) == ("wait", "VECTOR")]
    assert [flags.count(flag) for flag in ("0", "1", "2")] == [15, 5, 1]


def test_a_flag_that_is_set_for_the_next_turn_stays_one():
    turns = tirx.Var("rows", "int32")
    cube = repeated("turn", turns, lambda _: both(wait, "PIPE_FIX", 1) + both(arrive, "PIPE_FIX", 0))
    vector = arrive("PIPE_V", 1)
    vector += repeated("turn", turns, lambda _: wait("PIPE_V", 0) + arrive("PIPE_V", 1))
    cube += both(wait, "PIPE_FIX", 1) + both(arrive, "PIPE_MTE2", 0)
    allocated = cross_core_flags.allocate(function(cube, [*vector, *wait("PIPE_MTE3", 0)]))
    flag = {(kind, core, pipe, number) for kind, core, pipe, number in steps(allocated) if pipe == "PIPE_V"}
    assert flag == {
        ("arrive", "VECTOR", "PIPE_V", "0"),
        ("wait", "VECTOR", "PIPE_V", "1"),
    }, "the arrival before the loop and the one in it count on one flag"
    assert waiting_pipes(allocated)["VECTOR", "2"] == {"PIPE_MTE3"}


def test_a_ring_of_flags_moves_as_a_whole():
    turns = tirx.Var("rows", "int32")
    cube = both(arrive, "PIPE_FIX", 0) + both(arrive, "PIPE_MTE2", 0)
    cube += repeated("k", turns, lambda k: both(arrive, "PIPE_FIX", tirx.bitwise_and(k, int32(1)) + 4))
    vector = wait("PIPE_V", 0) + wait("PIPE_MTE3", 0)
    vector += repeated("k_1", turns, lambda k: wait("PIPE_V", tirx.bitwise_and(k, int32(1)) + 4))
    found = [
        flag for kind, core, _, flag in steps(cross_core_flags.allocate(function(cube, vector))) if core == "VECTOR"
    ]
    assert found[:2] == ["0", "1"]
    assert "+ 2" in found[2]


def test_running_out_of_flags_is_an_error():
    cube, vector = [], []
    for source in ("PIPE_MTE1", "PIPE_MTE2", "PIPE_FIX", "PIPE_M", "PIPE_S"):
        for target in ("PIPE_V", "PIPE_MTE2", "PIPE_MTE3", "PIPE_S"):
            cube += both(arrive, source, 0)
            vector += wait(target, 0)
    with pytest.raises(LoweringError, match="needs 20 cross-core flags, 16 exist"):
        cross_core_flags.allocate(function(cube, vector))


def test_a_flag_that_is_not_waited_for_as_often_as_set_is_an_error():
    cube = both(arrive, "PIPE_MTE2", 3) + both(arrive, "PIPE_FIX", 3) * 2
    with pytest.raises(LoweringError, match="not set as often as it is waited for"):
        cross_core_flags.allocate(function(cube, wait("PIPE_MTE3", 3) + wait("PIPE_V", 3)))


def test_nine_dots_whose_operands_are_staged_for_each_have_their_bits(monkeypatch):
    staging = sys.modules["kernelforge_ascend.passes.gemm_to_cube"]._GemmToCube
    monkeypatch.setattr(staging, "_forget_overwritten", lambda self, _: setattr(self, "staged", BufferMap()))
    given = []
    allocate = cross_core_flags.allocate
    monkeypatch.setattr(cross_core_flags, "allocate", lambda f: given.append(f) or allocate(f))
    kernel = executable(float32_product)
    assert any(cross_core_flags.two_pipes_wait(f) for f in given), "TileLang lets two pipes wait for one flag here"
    draw = np.random.default_rng(3)
    a, b = (draw.standard_normal((rows, K)).astype(np.float32) for rows in (33, N))
    assert_bits(kernel, [a, b], [product(a, b, 3, 3)])


K, N = 160, 40


def float32_product():
    given = {"groups": 1, "N": N, "K": K, "turned": False, "whole": False, "block_M": 32, "block_N": 48, "threads": 128}
    types = dict.fromkeys(("a_dtype", "b_dtype", "out_dtype"), "float32")
    return sliced_gemm(**given, **types)
