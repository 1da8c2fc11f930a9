"""cp.async, bulk and tensor copies: what they move, and when it may be seen."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numbered import numbered
from ptx_snippet import entry

from kernelforge_cuda.virtual.launch import KernelFault, Schedule, run

RNG = np.random.default_rng(77)
LANDINGS = ["late", "early", "random"]
MODULE = ".shared .align 1024 .b8 buf[{bytes}];\n.shared .align 8 .b8 bar[16];"
INIT = """
mov.u32 %r1, buf; mov.u32 %r2, bar; setp.eq.u32 %p1, %tid, 0;
@%p1 mbarrier.init.shared::cta.b64 [%r2], 1; fence.mbarrier_init.release.cluster; bar.sync 0;
"""
WAIT = """
{ .reg .pred P1; LAB: mbarrier.try_wait.parity.shared::cta.b64 P1, [%r2], 0; @P1 bra DONE; bra LAB; DONE: }
"""


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_copies_and_fills_with_zeros(landing: str, size: int) -> None:
    amounts = RNG.integers(0, size + 1, 32).astype(np.uint32)
    kind = "cg" if size == 16 else "ca"
    body = f"""
    mov.u32 %r1, buf; mad.lo.u32 %r1, %tid, {size}, %r1; mad.lo.u64 %d1, %t64, {size}, %a0;
    mad.lo.u64 %d2, %t64, 4, %a2;
    ld.global.u32 %r2, [%d2];
    cp.async.{kind}.shared.global [%r1], [%d1], {size}, %r2; cp.async.commit_group; cp.async.wait_group 0;
    mad.lo.u64 %d3, %t64, {size}, %a1; mov.u32 %r3, 0;
    LOOP: add.u32 %r4, %r1, %r3; ld.shared.u8 %r5, [%r4]; cvt.u64.u32 %d4, %r3; add.u64 %d4, %d4, %d3;
    st.global.u8 [%d4], %r5;
    add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, {size}; @%p1 bra LOOP;
    """
    text = entry(body, 3, module=".shared .align 16 .b8 buf[512];")
    for source in numbered((32, size), np.arange(1, 256), np.uint8):
        out = np.zeros_like(source)
        run(text, "k", [1], [32], [source, out, amounts], schedule=Schedule(1, landing))
        np.testing.assert_array_equal(out, source * (np.arange(size) < amounts[:, None]))


def test_cp_async_groups_complete_in_order() -> None:
    source, out = RNG.integers(0, 2**31, 64).astype(np.uint32), np.zeros((2, 32), np.uint32)
    body = """
    mov.u32 %r1, buf; mad.lo.u32 %r1, %tid, 4, %r1; mad.lo.u64 %d1, %t64, 4, %a0; mad.lo.u64 %d2, %t64, 4, %a1;
    cp.async.ca.shared.global [%r1], [%d1], 4; cp.async.commit_group;
    cp.async.ca.shared.global [%r1+128], [%d1+128], 4; cp.async.commit_group;
    cp.async.wait_group 1; ld.shared.u32 %r2, [%r1]; st.global.u32 [%d2], %r2;
    {second} ld.shared.u32 %r3, [%r1+128]; st.global.u32 [%d2+128], %r3;
    """
    module = ".shared .align 16 .b8 buf[256];"
    run(entry(body.replace("{second}", "cp.async.wait_group 0;"), 2, module=module), "k", [1], [32], [source, out])
    np.testing.assert_array_equal(out.reshape(-1), source)
    missing = entry(body.replace("{second}", ""), 2, module=module)
    with pytest.raises(KernelFault, match=r"not ordered after the write by the cp.async of warp 0"):
        run(missing, "k", [1], [32], [source, out])
    run(missing, "k", [1], [32], [source, out], schedule=Schedule(0, "late"), check=False)
    assert (out[1] != source[32:]).all(), "memory in flight is poisoned"
    run(missing, "k", [1], [32], [source, out], schedule=Schedule(0, "early"), check=False)
    np.testing.assert_array_equal(out.reshape(-1), source)


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("noinc", [True, False])
def test_cp_async_arrives_on_an_mbarrier(landing: str, noinc: bool) -> None:
    source, out = RNG.integers(0, 2**31, 32).astype(np.uint32), np.zeros(32, np.uint32)
    count = 32 if noinc else 1
    body = f"""
    mov.u32 %r1, buf; mov.u32 %r2, bar; setp.eq.u32 %p1, %tid, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2], {count}; bar.sync 0;
    mad.lo.u32 %r1, %tid, 4, %r1; mad.lo.u64 %d1, %t64, 4, %a0; mad.lo.u64 %d2, %t64, 4, %a1;
    cp.async.ca.shared.global [%r1], [%d1], 4;
    cp.async.mbarrier.arrive{".noinc" if noinc else ""}.shared::cta.b64 [%r2];
    {"" if noinc else "@%p1 mbarrier.arrive.shared::cta.b64 _, [%r2];"}
    {WAIT}
    xor.b32 %r3, %tid, 1; mov.u32 %r4, buf; mad.lo.u32 %r4, %r3, 4, %r4; ld.shared.u32 %r5, [%r4];
    st.global.u32 [%d2], %r5;
    """
    run(entry(body, 2, module=MODULE.format(bytes=128)), "k", [1], [32], [source, out], schedule=Schedule(2, landing))
    np.testing.assert_array_equal(out, source[np.arange(32) ^ 1])


@pytest.mark.parametrize("landing", LANDINGS)
def test_bulk_copies_in_and_out(landing: str) -> None:
    source, out = RNG.integers(0, 2**31, 256).astype(np.uint32), np.zeros(256, np.uint32)
    body = f"""{INIT}
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 1024;
    @%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%a0], 1024, [%r2];
    {WAIT}
    mad.lo.u32 %r3, %tid, 32, %r1; ld.shared.u32 %r4, [%r3]; add.u32 %r4, %r4, 1; st.shared.u32 [%r3], %r4;
    fence.proxy.async.shared::cta; bar.sync 0;
    @%p1 cp.async.bulk.global.shared::cta.bulk_group [%a1], [%r1], 1024;
    @%p1 cp.async.bulk.commit_group; @%p1 cp.async.bulk.wait_group.read 0;
    """
    run(entry(body, 2, module=MODULE.format(bytes=1024)), "k", [1], [32], [source, out], schedule=Schedule(3, landing))
    expected = source.copy()
    expected[::8] += 1
    np.testing.assert_array_equal(out, expected)


def tensor(buffer: np.ndarray, box: list[int], swizzle: int, nan_fill: bool = False) -> dict[str, Any]:
    """A tensor map over a C-contiguous array; dimensions innermost first, as the driver takes them."""
    return {
        "buffer": buffer,
        "element_bytes": buffer.itemsize,
        "dims": list(buffer.shape[::-1]),
        "strides": list(buffer.strides[::-1]),
        "box": box,
        "element_strides": [1] * buffer.ndim,
        "swizzle": swizzle,
        "nan_fill": nan_fill,
    }


def tensor_kernel(rank: int, size: int, coordinates: list[int], store: bool) -> str:
    """Loads a box to shared memory and copies it out linearly, or the other way round."""
    numbers = ", ".join(f"%r{20 + k}" for k in range(rank))
    sets = " ".join(f"mov.u32 %r{20 + k}, {c};" for k, c in enumerate(coordinates))
    move_in = "ld.global.v4.u32 {%r7, %r8, %r9, %r10}, [%d1]; st.shared.v4.u32 [%r6], {%r7, %r8, %r9, %r10};"
    move_out = "ld.shared.v4.u32 {%r7, %r8, %r9, %r10}, [%r6]; st.global.v4.u32 [%d1], {%r7, %r8, %r9, %r10};"
    linear = f"""
    mov.u32 %r5, 0;
    COPY: mad.lo.u32 %r6, %r5, 512, 0; mad.lo.u32 %r6, %tid, 16, %r6; cvt.u64.u32 %d1, %r6; add.u64 %d1, %a1, %d1;
    add.u32 %r6, %r6, %r1;
    setp.ge.u32 %p2, %r6, %r15; @%p2 bra NEXT;
    {move_in if store else move_out}
    NEXT: add.u32 %r5, %r5, 1; setp.lt.u32 %p2, %r5, {size // 512 + 1}; @%p2 bra COPY;
    """
    if store:
        work = f"""{linear} fence.proxy.async.shared::cta; bar.sync 0;
        @%p1 cp.async.bulk.tensor.{rank}d.global.shared::cta.tile.bulk_group [%a0, {{{numbers}}}], [%r1];
        @%p1 cp.async.bulk.commit_group; @%p1 cp.async.bulk.wait_group 0;"""
    else:
        work = f"""@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {size};
        @%p1 cp.async.bulk.tensor.{rank}d.shared::cta.global.tile.mbarrier::complete_tx::bytes
          [%r1], [%a0, {{{numbers}}}], [%r2];
        {WAIT} {linear}"""
    text = entry(f"{INIT} add.u32 %r15, %r1, {size}; {sets} {work}", 2, module=MODULE.format(bytes=max(size, 1024)))
    return text.replace(".param .u64 p0", ".param .align 64 .b8 p0[128]").replace(
        "ld.param.u64 %a0, [p0];", "mov.b64 %a0, p0; cvta.param.u64 %a0, %a0;"
    )


def expected_image(array: np.ndarray, box: list[int], coordinates: list[int], swizzle: int) -> np.ndarray:
    """Shared memory image of a box: rows in order, zeros outside, 16-byte chunks exchanged by the swizzle."""
    shape = box[::-1]
    values = np.zeros(shape, array.dtype)
    for index in itertools.product(*(range(s) for s in shape)):
        at = tuple(i + c for i, c in zip(index, coordinates[::-1], strict=True))
        if all(0 <= p < s for p, s in zip(at, array.shape, strict=True)):
            values[index] = array[at]
    plain = values.view(np.uint8).reshape(-1)
    bits = {0: 0, 1: 1, 2: 2, 3: 3}[swizzle]
    place = np.arange(plain.size)
    place ^= (place >> 3) & (((1 << bits) - 1) << 4)
    image = np.zeros_like(plain)
    image[place] = plain
    return image


BOXES = [
    (np.uint8, (300, 256), [128, 16], 3, [64, 290]),
    (np.uint16, (40, 64), [32, 24], 2, [40, -5]),
    (np.float32, (20, 48), [8, 20], 1, [4, 1]),
    (np.float32, (9, 12, 16), [8, 5, 3], 1, [-4, 9, 7]),
    (np.uint8, (3, 4, 5, 64), [64, 3, 2, 2], 2, [0, 3, 3, 1]),
    (np.uint32, (7, 100), [64, 7], 0, [60, 0]),
    (np.uint64, (512,), [256], 0, [300]),
]
NUMBERS = {False: np.arange(1, 256), True: np.arange(1, 2**16)}
"""By whether an element has more than one byte: values, never 0, that tell elements apart."""


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize(("dtype", "shape", "box", "swizzle", "coordinates"), BOXES)
def test_tensor_loads_swizzle_and_fill(
    dtype: Any, shape: tuple[int, ...], box: list[int], swizzle: int, coordinates: list[int], landing: str
) -> None:
    size = int(np.prod(box)) * np.dtype(dtype).itemsize
    text = tensor_kernel(len(box), size, coordinates, False)
    for array in numbered(shape, NUMBERS[np.dtype(dtype).itemsize > 1], dtype):
        out = np.zeros(size, np.uint8)
        run(text, "k", [1], [32], [tensor(array, box, swizzle), out], schedule=Schedule(4, landing))
        np.testing.assert_array_equal(out, expected_image(array, box, coordinates, swizzle))


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize(("dtype", "shape", "box", "swizzle", "coordinates"), BOXES)
def test_tensor_stores_write_only_inside(
    dtype: Any, shape: tuple[int, ...], box: list[int], swizzle: int, coordinates: list[int], landing: str
) -> None:
    size = int(np.prod(box)) * np.dtype(dtype).itemsize
    text = tensor_kernel(len(box), size, coordinates, True)
    inside = tuple(
        slice(max(0, c), max(0, c) + max(0, min(c + b, s) - max(0, c)))
        for c, b, s in zip(coordinates[::-1], box[::-1], shape, strict=True)
    )
    for truth in numbered(shape, NUMBERS[np.dtype(dtype).itemsize > 1], dtype):
        image = expected_image(truth, box, coordinates, swizzle)
        array, expected = np.zeros(shape, dtype), np.zeros(shape, dtype)
        run(text, "k", [1], [32], [tensor(array, box, swizzle), image], schedule=Schedule(4, landing))
        expected[inside] = truth[inside]
        np.testing.assert_array_equal(array, expected)


def test_tensor_maps_are_checked_as_the_driver_checks_them() -> None:
    array, out = np.zeros((16, 64), np.uint8), np.zeros(1024, np.uint8)
    for box, swizzle, message in (
        [[64, 16], 1, "swizzle of 32"],
        [[8, 16], 0, "multiple of 16"],
        [[64, 300], 0, "1 to 256"],
    ):
        with pytest.raises(ValueError, match=message):
            run(tensor_kernel(2, 1024, [0, 0], False), "k", [1], [32], [tensor(array, box, swizzle), out])


def test_mbarrier_states_and_counts() -> None:
    out = np.zeros((32, 2), np.uint32)
    body = """
    mov.u32 %r2, bar; setp.eq.u32 %p1, %tid, 0; @%p1 mbarrier.init.shared::cta.b64 [%r2], 64; bar.sync 0;
    mbarrier.arrive.shared::cta.b64 %d1, [%r2];
    mbarrier.test_wait.shared::cta.b64 %p2, [%r2], %d1; selp.u32 %r3, 1, 0, %p2; bar.sync 0;
    mbarrier.arrive.shared::cta.b64 %d2, [%r2];
    L: mbarrier.try_wait.shared::cta.b64 %p3, [%r2], %d2; @!%p3 bra L;
    mbarrier.test_wait.parity.shared::cta.b64 %p4, [%r2], 0; selp.u32 %r4, 1, 0, %p4;
    mad.lo.u64 %d3, %t64, 8, %a0; st.global.v2.u32 [%d3], {%r3, %r4};
    """
    run(entry(body, 1, module=MODULE.format(bytes=16)), "k", [1], [32], [out])
    assert set(out[:, 0]) == {0}
    assert set(out[:, 1]) == {1}


def test_more_arrivals_than_expected_are_an_error() -> None:
    body = """
    mov.u32 %r2, bar; setp.eq.u32 %p1, %tid, 0; @%p1 mbarrier.init.shared::cta.b64 [%r2], 31; bar.sync 0;
    setp.lt.u32 %p2, %tid, 30; @%p2 mbarrier.arrive.shared::cta.b64 _, [%r2];
    @%p1 mbarrier.arrive.shared::cta.b64 _, [%r2], 2;
    """
    with pytest.raises(KernelFault, match="more arrivals than the 31"):
        run(entry(body, 1, module=MODULE.format(bytes=16)), "k", [1], [32], [np.zeros(1, np.uint32)])


def test_a_load_in_flight_at_the_end_is_an_error() -> None:
    body = f"""{INIT} @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 64;
    @%p1 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%a0], 64, [%r2];"""
    with pytest.raises(KernelFault, match="ended while this bulk load was in flight"):
        run(entry(body, 1, module=MODULE.format(bytes=1024)), "k", [1], [32], [np.zeros(64, np.uint8)])
