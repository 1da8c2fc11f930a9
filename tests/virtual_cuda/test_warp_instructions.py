"""Exchanges between lanes, divergence, atomics and the spaces of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ptx_snippet import entry, lanes, one, words

from kernelforge_cuda.virtual.launch import KernelFault, PtxError, run

RNG = np.random.default_rng(3)
LANE = np.arange(32)


@pytest.mark.parametrize(
    ("mode", "source"), [("up", lambda d: LANE - d), ("down", lambda d: LANE + d), ("bfly", lambda d: LANE ^ d)]
)
@pytest.mark.parametrize("distance", [1, 2, 5, 16, 31])
@pytest.mark.parametrize("width", [32, 8])
def test_shuffles_stay_in_their_segment(mode: str, source: Any, distance: int, width: int) -> None:
    a = words(RNG)
    clamp = (32 - width) << 8 | (0 if mode == "up" else 0x1F)
    out = lanes(
        f"shfl.sync.{mode}.b32 %z|%p1, %x, {distance}, {clamp}, -1; selp.u32 %v, 1, 0, %p1;",
        {"%x": a},
        {"%z": np.uint32, "%v": np.uint32},
    )
    lane = source(distance)
    # The ISA bounds up from below and the others from above by the segment's end.
    valid = lane >= LANE // width * width if mode == "up" else lane <= (LANE // width * width | (width - 1))
    np.testing.assert_array_equal(out["%v"], valid)
    np.testing.assert_array_equal(out["%z"], np.where(valid, a[np.where(valid, lane, 0)], a))


def test_indexed_shuffle() -> None:
    a, index = words(RNG), RNG.integers(0, 32, 32).astype(np.uint32)
    np.testing.assert_array_equal(one("shfl.sync.idx.b32 %z, %x0, %x1, 31, -1;", np.uint32, a, index), a[index])


def test_votes_and_matches() -> None:
    a = words(RNG)
    out = lanes(
        "setp.gt.u32 %p1, %x, 1000; vote.sync.ballot.b32 %b, %p1, -1; vote.sync.any.pred %p2, %p1, -1;"
        "vote.sync.all.pred %p3, %p1, -1; selp.u32 %y, 1, 0, %p2; selp.u32 %w, 1, 0, %p3; "
        "match.any.sync.b32 %m, %k, -1;",
        {"%x": a, "%k": (LANE % 5).astype(np.uint32)},
        {"%b": np.uint32, "%y": np.uint32, "%w": np.uint32, "%m": np.uint32},
    )
    ballot = sum(1 << int(k) for k in LANE[a > 1000])
    assert set(out["%b"]) == {ballot}
    assert set(out["%y"]) == {1}
    assert set(out["%w"]) == {0}
    np.testing.assert_array_equal(out["%m"], [sum(1 << j for j in range(32) if j % 5 == k % 5) for k in range(32)])


@pytest.mark.parametrize(
    ("operation", "reduce"),
    [
        ("add.s32", lambda v: v.astype(np.int64).sum()),
        ("min.s32", np.min),
        ("max.u32", lambda v: v.view(np.uint32).max()),
        ("xor.b32", np.bitwise_xor.reduce),
    ],
)
def test_warp_reductions(operation: str, reduce: Any) -> None:
    a = words(RNG, np.int32)
    result = one(f"redux.sync.{operation} %z, %x0, -1;", np.uint32, a)
    np.testing.assert_array_equal(result, np.full(32, int(reduce(a)) % 2**32, np.uint32))


def test_one_lane_is_elected() -> None:
    out = lanes("elect.sync %r1|%p1, -1; selp.u32 %z, 1, 0, %p1;", {"%x": words(RNG)}, {"%z": np.uint32})
    np.testing.assert_array_equal(out["%z"], LANE == 0)


def test_diverged_lanes_meet_again() -> None:
    """A loop with another trip count per lane, then a shuffle that needs all lanes."""
    body = """
    mov.u32 %z, 0; mov.u32 %r1, 0;
    LOOP: setp.ge.u32 %p1, %r1, %n; @%p1 bra DONE;
    add.u32 %z, %z, %r1; add.u32 %r1, %r1, 1; bra LOOP;
    DONE: shfl.sync.bfly.b32 %r2, %z, 1, 31, -1; add.u32 %z, %z, %r2;
    """
    n = (LANE * 7 % 13).astype(np.uint32)
    total = n * (n - 1) // 2
    np.testing.assert_array_equal(lanes(body, {"%n": n}, {"%z": np.uint32})["%z"], total + total[LANE ^ 1])


def test_a_block_placed_after_its_join_still_meets_it() -> None:
    """Lanes that reach a shuffle first wait for those whose block stands behind it in the text."""
    body = """
    setp.lt.u32 %p1, %tid, 10; mov.u32 %z, 100; @%p1 bra FAR;
    JOIN: shfl.sync.idx.b32 %z, %z, 3, 31, -1; bra END;
    FAR: mov.u32 %z, 7; bra JOIN;
    END:
    """
    assert set(lanes(body, {"%n": words(RNG)}, {"%z": np.uint32})["%z"]) == {7}


def test_switches_by_branch_tables() -> None:
    body = """
    rem.u32 %r1, %tid, 3; brx.idx %r1, TS;
    TS: .branchtargets A, B, C;
    A: mov.u32 %z, 10; bra END;
    B: mov.u32 %z, 20; bra END;
    C: mov.u32 %z, 30;
    END:
    """
    np.testing.assert_array_equal(lanes(body, {"%n": words(RNG)}, {"%z": np.uint32})["%z"], LANE % 3 * 10 + 10)


def test_atomics_of_all_lanes_and_ctas_add_up() -> None:
    counts, order = np.zeros(8, np.int32), np.zeros(32 * 16, np.uint32)
    body = """
    and.b32 %r1, %tid, 7; mad.wide.u32 %d1, %r1, 4, %a0;
    red.global.add.s32 [%d1], 3; atom.global.max.s32 %r2, [%a0+4], -5;
    mov.u32 %r3, %ctaid.x; mad.lo.u32 %r4, %r3, 32, %tid; mad.wide.u32 %d2, %r4, 4, %a1;
    atom.global.add.u32 %r5, [%a2], 1; st.global.u32 [%d2], %r5;
    """
    ticket = np.zeros(1, np.uint32)
    run(entry(body, 3), "k", [16], [32], [counts, order, ticket], threads=2)
    np.testing.assert_array_equal(counts, np.full(8, 3 * 4 * 16))
    np.testing.assert_array_equal(np.sort(order), np.arange(512))


def test_compare_and_swap_lets_one_lane_win() -> None:
    out = lanes(
        "atom.global.cas.b32 %z, [%a0], %x, %n;",
        {"%x": np.full(32, 5, np.uint32), "%n": (LANE + 100).astype(np.uint32)},
        {"%z": np.uint32},
    )
    assert sorted(out["%z"])[:2] == [5, 100]


def test_generic_addresses_reach_shared_local_and_global_memory() -> None:
    body = """
    mov.u64 %d1, buf; cvta.shared.u64 %d2, %d1; mad.lo.u64 %d2, %t64, 8, %d2; st.u32 [%d2+4], %x; bar.sync 0;
    xor.b32 %r1, %tid, 1; cvt.u32.u64 %r2, %d1; mad.lo.u32 %r2, %r1, 8, %r2; ld.shared.u32 %z, [%r2+4];
    mov.u64 %d3, frame; cvta.local.u64 %d4, %d3; st.local.u32 [%d3+8], %tid; ld.u32 %l, [%d4+8];
    ld.global.u32 %g, [table+8];
    """
    a = words(RNG)
    out = lanes(
        ".local .align 16 .b8 frame[64];\n" + body,
        {"%x": a},
        {"%z": np.uint32, "%l": np.uint32, "%g": np.uint32},
        module=".shared .align 16 .b8 buf[256];\n.global .align 4 .u32 table[3] = {7, 8, 9};",
    )
    np.testing.assert_array_equal(out["%z"], a[LANE ^ 1])
    np.testing.assert_array_equal(out["%l"], LANE)
    assert set(out["%g"]) == {9}


def test_vector_and_narrow_accesses() -> None:
    data = RNG.integers(0, 256, 32 * 16).astype(np.uint8)
    result = np.zeros((32, 4), np.uint32)
    narrow = np.zeros((32, 3), np.int32)
    body = """
    mad.lo.u64 %d1, %t64, 16, %a0; mad.lo.u64 %d2, %t64, 16, %a1; mad.lo.u64 %d3, %t64, 12, %a2;
    ld.global.nc.v4.u32 {%r1, %r2, %r3, %r4}, [%d1]; st.global.v4.u32 [%d2], {%r4, %r3, %r2, %r1};
    ld.global.s8 %r5, [%d1+1]; ld.global.u8 %r6, [%d1+1]; ld.global.s16 %r7, [%d1+2];
    st.global.u32 [%d3], %r5; st.global.u32 [%d3+4], %r6; st.global.u32 [%d3+8], %r7;
    """
    run(entry(body, 3), "k", [1], [32], [data, result, narrow])
    rows = data.reshape(32, 16)
    np.testing.assert_array_equal(result, rows.view(np.uint32)[:, ::-1])
    np.testing.assert_array_equal(narrow[:, 0], rows[:, 1].view(np.int8))
    np.testing.assert_array_equal(narrow[:, 1], rows[:, 1])
    np.testing.assert_array_equal(narrow[:, 2], rows[:, 2:4].copy().view(np.int16)[:, 0])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.u32 %r1, [%a0+128];", "outside every buffer"),
        ("ld.global.u32 %r1, [%a0+-4];", "outside every buffer"),
        ("ld.global.u32 %r1, [%a0+2];", "misaligned"),
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%a0+4];", "misaligned"),
        ("st.shared.u32 [%tid], %tid;", "outside the CTA"),
        ("trap;", "trapped"),
        ("setp.lt.u32 %p1, %tid, 4; @%p1 bar.sync 0;", "guard lets only"),
        ("setp.lt.u32 %p1, %tid, 4; @%p1 bra A; bar.sync 0; bra B; A: bar.sync 1; B:", "diverged"),
        ("bar.sync 0, 64;", "thread count 64"),
        ("mbarrier.arrive.shared::cta.b64 %d1, [%tid];", "mbarrier"),
    ],
)
def test_faults_are_errors_with_the_place(body: str, message: str) -> None:
    with pytest.raises(KernelFault, match=message) as caught:
        run(entry(body, 1), "k", [1], [32], [np.zeros(32, np.uint32)])
    assert "kernel k, CTA (0, 0, 0), warp 0 at `" in str(caught.value)


def test_stores_to_read_only_buffers_are_errors() -> None:
    data = np.zeros(32, np.uint32)
    data.flags.writeable = False
    with pytest.raises(KernelFault, match="read-only"):
        run(entry("st.global.u32 [%a0], %tid;", 1), "k", [1], [32], [data])


def test_unknown_instructions_are_named_with_their_line() -> None:
    with pytest.raises(PtxError, match=r"`tcgen05.alloc.*\(PTX line \d+\)"):
        run(
            entry("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 32;", 1),
            "k",
            [1],
            [32],
            [np.zeros(1, np.uint32)],
        )


def test_source_lines_of_the_kernel_are_in_the_message() -> None:
    text = entry(".loc 1 42 0\nld.global.u32 %r1, [%a0+4];", 1, module='.file 1 "kernel.cu"')
    with pytest.raises(KernelFault, match=r"kernel.cu:42"):
        run(text, "k", [1], [32], [np.zeros(1, np.uint32)])


def test_blocks_of_any_shape_know_their_threads() -> None:
    out = np.zeros((2, 3, 5, 4), np.uint32)
    body = """
    mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ctaid.y;
    mad.lo.u32 %r5, %r4, 3, %r3; mad.lo.u32 %r5, %r5, 5, %r2; mad.lo.u32 %r5, %r5, 4, %r1;
    mad.wide.u32 %d1, %r5, 4, %a0; add.u32 %r5, %r5, 1; st.global.u32 [%d1], %r5;
    """
    run(entry(body, 1), "k", [1, 2, 1], [4, 5, 3], [out])
    np.testing.assert_array_equal(out.reshape(-1), np.arange(1, 121))
