"""Instructions that compilers seldom print, and that every instruction the decoder knows has a test."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ptx_snippet import entry, floats, lanes, one, words

from kernelforge_cuda.virtual import Schedule
from kernelforge_cuda.virtual.launch import KernelFault, run

RNG = np.random.default_rng(20)
LANE = np.arange(32, dtype=np.uint32)
SOURCES = Path(__file__).parents[2] / "csrc" / "virtual_cuda"


def test_every_instruction_that_is_decoded_is_executed_by_a_test() -> None:
    sources = "".join(path.read_text() for path in SOURCES.glob("*.cpp"))
    known = set(re.findall(r'\bop == "(\w+)"', sources)) | set(re.findall(r'd\.mods\[0\] [!=]= "(\w+)"', sources))
    assert len(known) > 60
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    assert [op for op in sorted(known) if not re.search(rf"(?<![\w.]){op}[.; ]", tests)] == []


def test_borrow_chain_subtracts_128_bits() -> None:
    parts = [words(RNG, np.uint64) for _ in range(4)]
    out = lanes(
        "sub.cc.u64 %lo, %a_lo, %b_lo; subc.u64 %hi, %a_hi, %b_hi;",
        dict(zip(("%a_lo", "%a_hi", "%b_lo", "%b_hi"), parts, strict=True)),
        {"%lo": np.uint64, "%hi": np.uint64},
    )
    a_lo, a_hi, b_lo, b_hi = ([int(x) for x in part] for part in parts)
    for i in range(32):
        wanted = ((a_hi[i] << 64 | a_lo[i]) - (b_hi[i] << 64 | b_lo[i])) % 2**128
        assert (int(out["%hi"][i]) << 64 | int(out["%lo"][i])) == wanted


def test_absolute_difference_is_added() -> None:
    a, b, c = words(RNG, np.int32), words(RNG, np.int32)[::-1].copy(), words(RNG, np.int32)
    wanted = (np.abs(a.astype(np.int64) - b) + c).astype(np.uint64).astype(np.uint32)
    np.testing.assert_array_equal(one("sad.s32 %z, %x0, %x1, %x2;", np.uint32, a, b, c), wanted)


def test_logical_not_is_one_for_zero() -> None:
    a = (LANE % 3).astype(np.uint32)
    np.testing.assert_array_equal(one("cnot.b32 %z, %x0;", np.uint32, a), a == 0)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_bit_masks(mode: str) -> None:
    at, width = RNG.integers(0, 70, 32).astype(np.uint32), RNG.integers(0, 70, 32).astype(np.uint32)
    if mode == "wrap":
        pairs = [(int(a) & 31, int(w) & 31) for a, w in zip(at, width, strict=True)]
    else:
        pairs = [(min(int(a), 32), min(int(w), 32)) for a, w in zip(at, width, strict=True)]
    wanted = np.array([((1 << w) - 1 << a) % 2**32 for a, w in pairs], np.uint32)
    np.testing.assert_array_equal(one(f"bmsk.{mode}.b32 %z, %x0, %x1;", np.uint32, at, width), wanted)


@pytest.mark.parametrize("half", ["lo", "hi"])
@pytest.mark.parametrize(("x", "y"), [("s32", "s32"), ("u32", "u32"), ("s32", "u32"), ("u32", "s32")])
def test_dp2a_multiplies_16_bits_by_a_half_of_8(x: str, y: str, half: str) -> None:
    a, b, c = words(RNG), words(RNG)[::-1].copy(), words(RNG)
    words_of = a.view({"s32": np.int16, "u32": np.uint16}[x]).reshape(32, 2).astype(np.int64)
    bytes_of = b.view({"s32": np.int8, "u32": np.uint8}[y]).reshape(32, 4).astype(np.int64)
    dot = (words_of * bytes_of[:, 2:] if half == "hi" else words_of * bytes_of[:, :2]).sum(1)
    np.testing.assert_array_equal(
        one(f"dp2a.{half}.{x}.{y} %z, %x0, %x1, %x2;", np.uint32, a, b, c), (c.astype(np.int64) + dot).astype(np.uint32)
    )


def test_set_gives_all_ones_or_a_float() -> None:
    a, b = words(RNG, np.int32), words(RNG, np.int32)[::-1].copy()
    np.testing.assert_array_equal(one("set.lt.u32.s32 %z, %x0, %x1;", np.uint32, a, b), np.where(a < b, 2**32 - 1, 0))
    np.testing.assert_array_equal(one("set.lt.f32.s32 %z, %x0, %x1;", np.float32, a, b), (a < b).astype(np.float32))


def test_copysign_takes_the_sign_of_its_first_operand() -> None:
    a, b = floats(RNG), floats(RNG)[::-1].copy()
    wanted = (a.view(np.uint32) & 0x80000000) | (b.view(np.uint32) & 0x7FFFFFFF)
    np.testing.assert_array_equal(one("copysign.f32 %z, %x0, %x1;", np.uint32, a, b), wanted)


@pytest.mark.parametrize("kind", ["finite", "infinite", "number", "notanumber", "normal", "subnormal"])
def test_floats_are_classified(kind: str) -> None:
    a = floats(RNG)
    tiny = np.finfo(np.float32).tiny
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(a)
        wanted = {
            "finite": np.isfinite(a),
            "infinite": np.isinf(a),
            "number": ~np.isnan(a),
            "notanumber": np.isnan(a),
            "normal": np.isfinite(a) & (magnitude >= tiny),
            "subnormal": (magnitude < tiny) & (magnitude > 0),
        }[kind]
    assert wanted.any()
    assert not wanted.all()
    np.testing.assert_array_equal(
        one(f"testp.{kind}.f32 %p1, %x0; selp.u32 %z, 1, 0, %p1;", np.uint32, a), wanted.astype(np.uint32)
    )


def test_active_lanes_are_those_that_took_the_branch() -> None:
    body = "setp.lt.u32 %p1, %x0, 7; mov.u32 %z, 0; @!%p1 bra L; activemask.b32 %z; L: bar.warp.sync -1;"
    np.testing.assert_array_equal(one(body, np.uint32, LANE), np.where(LANE < 7, 127, 0))


def test_lanes_that_exit_are_not_waited_for() -> None:
    out = np.zeros(32, np.uint32)
    body = (
        "setp.ge.u32 %p1, %tid, 20; @%p1 exit; setp.eq.u32 %p2, 0, 0; vote.sync.ballot.b32 %r2, %p2, 0xfffff; "
        "activemask.b32 %r1; and.b32 %r1, %r1, %r2; mad.lo.u64 %pp, %t64, 4, %a0; st.global.b32 [%pp], %r1;"
    )
    run(entry(body, 1), "k", [1], [32], [out], schedule=Schedule())
    np.testing.assert_array_equal(out, np.where(LANE < 20, 0xFFFFF, 0))


def test_address_spaces_are_told_apart() -> None:
    out = lanes(
        ".shared .b32 here; mov.u64 %d1, here; cvta.shared.u64 %d2, %d1; isspacep.shared %p1, %d2; "
        "isspacep.global %p2, %d2; isspacep.shared %p3, %a0; isspacep.global %p4, %a0; "
        "selp.u32 %s, 1, 0, %p1; selp.u32 %g, 1, 0, %p2; selp.u32 %t, 1, 0, %p3; selp.u32 %h, 1, 0, %p4;",
        {"%x": LANE},
        {"%s": np.uint32, "%g": np.uint32, "%t": np.uint32, "%h": np.uint32},
    )
    assert [set(values) for values in out.values()] == [{1}, {0}, {0}, {1}]


def test_shared_memory_of_the_own_block_maps_to_itself() -> None:
    body = (
        ".shared .b32 here[32]; mov.u32 %r1, here; mov.u32 %r2, 0; mapa.shared::cluster.u32 %r3, %r1, %r2; "
        "mad.lo.u32 %r4, %tid, 4, %r1; st.shared.u32 [%r4], %x0; mad.lo.u32 %r5, %tid, 4, %r3; ld.shared.u32 %z, [%r5];"
    )
    values = words(RNG)
    np.testing.assert_array_equal(one(body, np.uint32, values), values)


def test_fences_hints_and_register_budgets_change_nothing() -> None:
    body = (
        "membar.cta; membar.gl; fence.acq_rel.gpu; nanosleep.u32 20; prefetch.global.L2 [%a0]; "
        "griddepcontrol.wait; griddepcontrol.launch_dependents; "
        "setmaxnreg.dec.sync.aligned.u32 40; setmaxnreg.inc.sync.aligned.u32 232; mov.u32 %z, %x0;"
    )
    values = words(RNG)
    np.testing.assert_array_equal(one(body, np.uint32, values), values)


def test_uniform_loads_load() -> None:
    values = words(RNG)
    body = "mad.lo.u64 %pp, %t64, 4, %a0; ldu.global.u32 %z, [%pp];"
    np.testing.assert_array_equal(one(body, np.uint32, values), values)


@pytest.mark.parametrize("statement", ["trap;", "brkpt;"])
def test_traps_stop_the_kernel_with_their_line(statement: str) -> None:
    with pytest.raises(KernelFault, match=rf"`{statement[:-1]}` \(PTX line \d+\)"):
        run(entry(statement, 0), "k", [1], [32], [], schedule=Schedule())


def test_a_function_returns_by_ret() -> None:
    values = words(RNG)
    body = "setp.gt.u32 %p1, %tid, 3; mov.u32 %z, %x0; @!%p1 bra W; W:"
    np.testing.assert_array_equal(one(body, np.uint32, values), values)
    out = np.zeros(32, np.uint32)
    text = "setp.gt.u32 %p1, %tid, 3; @%p1 ret; mad.lo.u64 %pp, %t64, 4, %a0; st.global.b32 [%pp], 5;"
    run(entry(text, 1), "k", [1], [32], [out], schedule=Schedule())
    np.testing.assert_array_equal(out, np.where(LANE > 3, 0, 5))
