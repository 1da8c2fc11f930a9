"""Faults that bits may hide: order over shared memory, proxies, fences, barriers; and deadlocks."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_snippet import entry

from kernelforge_cuda.virtual.launch import KernelFault, Schedule, run

MODULE = ".shared .align 1024 .b8 buf[4096];\n.shared .align 8 .b8 bar[16];"
SCHEDULES = [
    Schedule(seed, landing, preempt)
    for seed, landing, preempt in ((0, "late", 0.0), (1, "early", 0.1), (2, "random", 0.3))
]
EXCHANGE = """
mov.u32 %r1, buf; mad.lo.u32 %r2, %tid, 4, %r1; st.shared.u32 [%r2], %tid; {sync}
xor.b32 %r3, %tid, {other}; mad.lo.u32 %r4, %r3, 4, %r1; ld.shared.u32 %r5, [%r4]; mad.lo.u64 %d1, %t64, 4, %a0;
st.global.u32 [%d1], %r5;
"""


def launch(body: str, threads: int = 64, schedule: Schedule | None = None, check: bool = True) -> np.ndarray:
    out = np.zeros(threads, np.uint32)
    run(entry(body, 1, module=MODULE), "k", [1], [threads], [out], schedule=schedule, check=check)
    return out


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_missing_barrier_is_found_on_every_schedule(schedule: Schedule) -> None:
    np.testing.assert_array_equal(
        launch(EXCHANGE.format(sync="bar.sync 0;", other=32), schedule=schedule), np.arange(64) ^ 32
    )
    with pytest.raises(KernelFault, match=r"not ordered after the (write|read) by warp"):
        launch(EXCHANGE.format(sync="", other=32), schedule=schedule)


def test_lanes_of_one_warp_are_ordered() -> None:
    np.testing.assert_array_equal(launch(EXCHANGE.format(sync="bar.warp.sync -1;", other=1)), np.arange(64) ^ 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_write_over_a_read_needs_a_barrier(schedule: Schedule) -> None:
    body = EXCHANGE.format(sync="bar.sync 0;", other=32) + "{again} st.shared.u32 [%r2], %r5;"
    launch(body.replace("{again}", "bar.sync 0;"), schedule=schedule)
    with pytest.raises(KernelFault, match=r"shared byte .* not ordered after the (read|write) by warp"):
        launch(body.replace("{again}", ""), schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_named_barriers_order_producers_and_consumers(schedule: Schedule) -> None:
    body = """
    setp.lt.u32 %p1, %tid, 32; mov.u32 %r1, buf; @!%p1 bra CONSUME;
    mad.lo.u32 %r2, %tid, 4, %r1; st.shared.u32 [%r2], %tid; bar.arrive 3, 64; bra END;
    CONSUME: bar.sync {id}, {count}; add.u32 %r3, %tid, -32; mad.lo.u32 %r2, %r3, 4, %r1; ld.shared.u32 %r5, [%r2];
    mad.lo.u64 %d1, %t64, 4, %a0; st.global.u32 [%d1], %r5;
    END:
    """
    np.testing.assert_array_equal(launch(body.format(id=3, count=64), schedule=schedule)[32:], np.arange(32))
    with pytest.raises(KernelFault, match=r"barrier 4, where 32 of 64 threads arrived|ended while barrier 3"):
        launch(body.format(id=4, count=64), schedule=schedule)
    with pytest.raises(KernelFault, match=r"names 32 threads|not ordered|ended while barrier 3|names 64 threads"):
        launch(body.format(id=3, count=32), schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_atomics_do_not_race_with_each_other_but_with_plain_accesses(schedule: Schedule) -> None:
    body = """
    mov.u32 %r1, buf; setp.eq.u32 %p1, %tid, 0; @%p1 st.shared.u32 [%r1], 0; bar.sync 0;
    atom.shared.add.u32 %r2, [%r1], 1; {sync} ld.shared.u32 %r3, [%r1]; mad.lo.u64 %d1, %t64, 4, %a0;
    st.global.u32 [%d1], %r3;
    """
    assert set(launch(body.format(sync="bar.sync 0;"), schedule=schedule)) == {64}
    with pytest.raises(KernelFault, match="atomic access"):
        launch(body.format(sync=""), schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fence", ["before", "after", "none"])
def test_generic_writes_need_a_proxy_fence_before_a_bulk_store(schedule: Schedule, fence: str) -> None:
    instruction = "fence.proxy.async.shared::cta;"
    body = f"""
    mov.u32 %r1, buf; mad.lo.u32 %r2, %tid, 4, %r1; st.shared.u32 [%r2], %tid;
    {instruction if fence == "before" else ""}
    bar.sync 0; setp.eq.u32 %p1, %tid, 0; {instruction if fence == "after" else ""}
    @%p1 cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r1], 256; @%p1 cp.async.bulk.commit_group;
    @%p1 cp.async.bulk.wait_group.read 0;
    """
    if fence == "none":
        with pytest.raises(KernelFault, match=r"without a fence\.proxy\.async"):
            launch(body, schedule=schedule)
    else:
        np.testing.assert_array_equal(launch(body, schedule=schedule), np.arange(64))


def test_shared_memory_of_a_bulk_store_is_not_rewritten_before_the_wait() -> None:
    body = """
    mov.u32 %r1, buf; mad.lo.u32 %r2, %tid, 4, %r1; st.shared.u32 [%r2], %tid; fence.proxy.async.shared::cta;
    bar.sync 0;
    setp.eq.u32 %p1, %tid, 0; @%p1 cp.async.bulk.global.shared::cta.bulk_group [%a0], [%r1], 256;
    @%p1 cp.async.bulk.commit_group;
    {early} bar.sync 0; st.shared.u32 [%r2], 7; {late}
    """
    wait = "@%p1 cp.async.bulk.wait_group.read 0;"
    launch(body.format(early=wait, late=""))
    with pytest.raises(KernelFault, match="not ordered after the read by the bulk store of warp"):
        launch(body.format(early="", late=wait))
    with pytest.raises(KernelFault, match="without waiting for this bulk store"):
        launch(body.format(early="", late="").replace("st.shared.u32 [%r2], 7;", ""))


@pytest.mark.parametrize("order", ["fence", "no fence", "no barrier"])
def test_mbarriers_must_be_visible_before_they_are_used(order: str) -> None:
    body = f"""
    mov.u32 %r1, buf; mov.u32 %r2, bar; setp.eq.u32 %p1, %tid, 0; setp.eq.u32 %p2, %tid, 32;
    @%p1 mbarrier.init.shared::cta.b64 [%r2], 1; {"fence.mbarrier_init.release.cluster;" if order == "fence" else ""}
    {"" if order == "no barrier" else "bar.sync 0;"}
    @%p2 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
    @%p2 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%a0], 128, [%r2];
    L: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0; @!%p3 bra L;
    """
    if order == "fence":
        launch(body)
        return
    message = "fence.mbarrier_init" if order == "no fence" else "before its initialization|no mbarrier was initialized"
    with pytest.raises(KernelFault, match=message):
        launch(body)


@pytest.mark.parametrize("fault", ["none", "fence", "wait", "touch"])
def test_wgmma_registers_are_fenced_and_waited_for(fault: str) -> None:
    body = f"""
    mov.u32 %r1, buf; mad.lo.u32 %r2, %tid, 32, %r1; mov.u32 %r3, 16843009;
    st.shared.v4.u32 [%r2], {{%r3, %r3, %r3, %r3}}; st.shared.v4.u32 [%r2+16], {{%r3, %r3, %r3, %r3}};
    fence.proxy.async.shared::cta; bar.sync 0;
    cvt.u64.u32 %d1, %r1; shr.u64 %d1, %d1, 4; or.b64 %d1, %d1, {(1 << 62) | (1 << 16)};
    mov.u32 %r10, 5; mov.u32 %r11, 6; mov.u32 %r12, 7; mov.u32 %r13, 8; setp.eq.u32 %p1, %r1, %r1;
    {"" if fault == "fence" else "wgmma.fence.sync.aligned;"}
    {"mov.u32 %r12, 9;" if fault == "touch" else ""}
    wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {{%r10, %r11, %r12, %r13}}, %d1, %d1, %p1;
    wgmma.commit_group.sync.aligned;
    {"" if fault == "wait" else "wgmma.wait_group.sync.aligned 0;"}
    mad.lo.u64 %d2, %t64, 4, %a0; st.global.u32 [%d2], %r11;
    {"wgmma.wait_group.sync.aligned 0;" if fault == "wait" else ""}
    """
    if fault == "none":
        assert set(launch(body, 128)) == {38}
        return
    with pytest.raises(KernelFault, match=r"was not waited for" if fault == "wait" else r"since the last wgmma\.fence"):
        launch(body, 128)


def test_two_ctas_may_not_store_to_one_place() -> None:
    body = (
        "mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, {step}, %tid; mad.wide.u32 %d1, %r2, 4, %a0; "
        "st.global.u32 [%d1], 7;"
    )
    run(entry(body.format(step=32), 1), "k", [2], [32], [np.zeros(64, np.uint32)])
    with pytest.raises(KernelFault, match=r"also stored by CTA \(\d, 0, 0\), and nothing orders the two"):
        run(entry(body.format(step=31), 1), "k", [2], [32], [np.zeros(64, np.uint32)])


def test_deadlocks_say_who_waits_for_what() -> None:
    body = "setp.lt.u32 %p1, %tid, 32; @%p1 bra END; bar.sync 2, 64; END:"
    with pytest.raises(
        KernelFault,
        match=(
            r"deadlock: warp 1 waits at `bar.sync 2, 64` \(PTX line \d+\) for barrier 2, where 32 of 64 "
            r"threads arrived; 1 of 2 warps have ended"
        ),
    ):
        launch(body)
    body = """
    mov.u32 %r2, bar; setp.eq.u32 %p1, %tid, 0; @%p1 mbarrier.init.shared::cta.b64 [%r2], 3; bar.sync 0;
    L: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0; @!%p3 bra L;
    """
    with pytest.raises(
        KernelFault,
        match=(
            r"mbarrier at 0x[0-9a-f]+ to end a phase of parity 0 \(it is in phase 0, 3 of 3 arrivals and 0 "
            r"bytes missing\)"
        ),
    ):
        launch(body)
    with pytest.raises(KernelFault, match="polls without end"):
        launch(body.replace("try_wait", "test_wait"))


def test_an_endless_loop_hits_the_limit() -> None:
    with pytest.raises(KernelFault, match="more than 1000000 instructions"):
        run(
            entry("L: add.u32 %r1, %r1, 1; bra L;", 1),
            "k",
            [1],
            [32],
            [np.zeros(1, np.uint32)],
            max_instructions=1_000_000,
        )


def test_uninitialized_shared_memory_is_poisoned_by_the_seed() -> None:
    body = (
        "mov.u32 %r1, buf; mad.lo.u32 %r2, %tid, 4, %r1; ld.shared.u32 %r5, [%r2]; "
        "mad.lo.u64 %d1, %t64, 4, %a0; st.global.u32 [%d1], %r5;"
    )
    first, second = launch(body, schedule=Schedule(1)), launch(body, schedule=Schedule(2))
    assert (first != second).all()
    assert (first != 0).all()
    np.testing.assert_array_equal(first, launch(body, schedule=Schedule(1)))
