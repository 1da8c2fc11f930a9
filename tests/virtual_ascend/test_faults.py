"""Programs with a fault: the virtual device stops them, says what is wrong and where, and lives on."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ascendc import L2, library, load, mixed, run, store, then, vector

from kernelforge.backends.interface import CompileFailed
from kernelforge_ascend.virtual import Schedule, VirtualFault, build, launch, signature

XY = "__gm__ int32_t* X, __gm__ int32_t* Y"
NEGATE = """__simt_vf__ inline void work(__ubuf__ uint8_t* ub) {
  __ubuf__ int32_t* x = (__ubuf__ int32_t*)ub;
  x[threadIdx.x] = -x[threadIdx.x];
}
"""
CALL = "    asc_vf_call<work>(cce::dim3(64), ub);\n"
x = np.arange(64, dtype=np.int32)


def fault(source: str, schedule: Schedule, arguments: list[np.ndarray] | None = None) -> str:
    with pytest.raises(VirtualFault) as caught:
        launch(library(source, schedule.check), arguments or [x, np.zeros(64, np.int32)], 1, schedule)
    return str(caught.value)


LATE, CHECKED = Schedule("late"), Schedule("late", check=True)


def test_the_same_program_without_a_fault_runs():
    y = np.zeros(64, np.int32)
    program = load("X", 256) + then("MTE2", "V") + CALL + then("V", "MTE3") + store("Y", 256)
    run(vector(XY, program, NEGATE), [x, y])
    np.testing.assert_array_equal(y, -x)


@pytest.mark.parametrize("order", ["late", "early", "random"])
def test_a_missing_wait_is_a_race_under_every_schedule(order):
    program = load("X", 256) + CALL + then("V", "MTE3") + store("Y", 256)
    text = fault(vector(XY, program, NEGATE), Schedule(order, check=True))
    assert re.search(r"race on UB|which nothing has written", text)
    assert "asc_vf_call" in text


def test_a_race_names_both_sides_and_their_lines():
    program = load("X", 256) + CALL + then("V", "MTE3") + store("Y", 256)
    text = fault(vector(XY, program, NEGATE), Schedule("early", check=True))
    assert "reads what asc_copy_gm2ub_align at virtual_checked.cpp" in text
    assert "no wait orders the two" in text
    assert "asc_vf_call<work>(cce::dim3(64), ub);" in text, "the generated line is quoted"


def test_reuse_of_a_buffer_before_its_reader_is_done():
    once = load("X", 256) + then("MTE2", "MTE3") + store("Y", 256)
    program = once + "    asc_sync_pipe(PIPE_MTE2);\n" + once
    text = fault(vector(XY, program), Schedule("early", check=True))
    assert re.search(r"writes what asc_copy_ub2gm_align at \S+ \(vector 0 pipe MTE3\) read", text)


def test_copies_of_one_pipe_are_not_ordered_without_a_barrier():
    twice = load("X", 256) + "{}" + load("X + 8", 128) + then("MTE2", "MTE3") + store("Y", 256)
    assert "race on UB" in fault(vector(XY, twice.format("")), Schedule("early", check=True))
    run(vector(XY, twice.format("    asc_sync_pipe(PIPE_MTE2);\n")), [x, np.zeros(64, np.int32)])


def test_a_missing_cross_core_wait_is_a_race_on_the_workspace():
    copy = "    if (sid == 0) {\n" + load("X", 256) + then("MTE2", "MTE3") + store("W", 256)
    use = (
        "    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>(16), 0);\n"
        f"    asc_copy_gm2l1_nd2nz((__cbuf__ int8_t*)l1, (__gm__ int8_t*)W, 16, {L2}, 16, 16, 0, 0);\n"
    )
    parameters = "__gm__ int32_t* X, __gm__ int32_t* W"
    arrive, wait = "    asc_sync_intra_arrive(PIPE_MTE3, 0);\n", "    asc_sync_intra_wait(PIPE_MTE2, 0);\n"
    run(mixed(parameters, wait + use, copy + arrive + "    }\n"), [x, np.zeros(64, np.int32)])
    for order in ("late", "early"):
        text = fault(mixed(parameters, use, copy + "    }\n"), Schedule(order, check=True))
        assert "race on W" in text


def test_a_deadlock_says_who_waits_for_what():
    program = load("X", 256) + "    asc_sync_wait(PIPE_MTE2, PIPE_MTE3, static_cast<event_t>(2));\n" + store("Y", 256)
    text = fault(vector(XY, program), LATE)
    assert "deadlock" in text
    assert "pipe MTE3 at virtual.cpp" in text
    assert "waits for flag MTE2 -> MTE3 event 2" in text


def test_a_deadlock_between_cores_says_so():
    text = fault(mixed(XY, "    asc_sync_intra_wait(PIPE_MTE2, 17);\n", ""), LATE)
    assert "cube pipe MTE2" in text
    assert "cross-core flag 17" in text


def test_two_pipes_that_wait_for_one_cross_core_flag():
    cube = "    asc_sync_intra_arrive(PIPE_MTE2, {0});\n    asc_sync_intra_arrive(PIPE_MTE2, {1});\n"
    cube = cube.format(0, 16) + cube.format(0, 16)
    waits = "    asc_sync_intra_wait(PIPE_MTE3, 0);\n{}    asc_sync_intra_wait(PIPE_V, 0);\n"
    for order in ("late", "early", "random"):
        text = fault(mixed(XY, cube, waits.format("")), Schedule(order, check=True))
        assert "two pipes wait for cross-core flag 0 of vector" in text
        assert "asc_sync_intra_wait(PIPE_V, 0);" in text, "the generated line is quoted"
    run(mixed(XY, cube, waits.format(then("MTE3", "V"))), [x, np.zeros(64, np.int32)])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("    asc_sync_notify(PIPE_MTE2, PIPE_V, static_cast<event_t>(1));\n", "is never waited for"),
        ("    asc_sync_notify(PIPE_MTE2, PIPE_V, static_cast<event_t>(1));\n" * 2, "a wait is missing"),
        ("    asc_lock(PIPE_MTE2, 3);\n", "never released"),
        ("    asc_sync_notify(PIPE_MTE2, PIPE_V, static_cast<event_t>(8));\n", "not 0 to 7"),
        ("    asc_lock(PIPE_MTE2, 32);\n", "not 0 to 31"),
    ],
)
def test_unpaired_synchronization(program, message):
    assert message in fault(vector(XY, program), LATE)


def test_cross_core_arrivals_that_nothing_waits_for():
    text = fault(mixed(XY, "", "    asc_sync_intra_arrive(PIPE_MTE3, 2);\n"), LATE)
    assert "has 1 arrivals that nothing waits for" in text


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (load("X", 257), "257 bytes of global memory from byte 0 of X, which has 256"),
        (load("X - 1", 64), "from byte -4 of X"),
        (load("X", 256, at=248 * 1024 - 128), "of UB of vector 0, which has 253952"),
        (load("X", 64, at=8), "is not a multiple of 32"),
        (
            "    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>(16), 0);\n"
            f"    asc_copy_gm2l1_nd2nz((__cbuf__ int8_t*)0, (__gm__ int8_t*)X, 16, {L2}, 16, 16, 0, 0);\n",
            "issued on a vector core",
        ),
        (load("X", 256).replace(", 1, 256, 0, 0, 0", ", 1, 256, 1, 0, 0"), "does not implement"),
    ],
)
def test_copies_outside_their_memory(program, message):
    assert message in fault(vector(XY, program), LATE)


def test_the_cube_s_memories_have_bounds():
    cube = "    asc_copy_l12l0a((__ca__ int8_t*)0, (__cbuf__ int8_t*)(l1 + 524288 - 512), 0, 0, 2, 1, 2, 2);\n"
    assert "of L1, which has 524288" in fault(mixed(XY, cube, ""), LATE)
    cube = "    asc_mmad(l0c, (__ca__ int8_t*)0, (__cb__ int8_t*)65536, 16, 32, 16, 0, true, false, true);\n"
    assert "of L0B, which has 65536" in fault(mixed(XY, cube, ""), LATE)


def test_unwritten_memory_is_not_data():
    assert "which nothing has written" in fault(vector(XY, store("Y", 256)), CHECKED)
    text = fault(vector(XY, CALL, NEGATE), CHECKED)
    assert re.search(r"reads byte \d+ of UB of vector 0, which nothing has written", text)


def test_vector_functions_stay_inside_ub_and_the_arguments():
    beyond = NEGATE.replace("x[threadIdx.x] = -x[threadIdx.x]", "x[threadIdx.x + 63488] = 1")
    text = fault(vector(XY, CALL, beyond), CHECKED)
    assert "outside UB and every argument" in text
    assert "code at virtual_checked.cpp" in text
    argument = "__simt_vf__ inline void work(__gm__ int32_t* y) { y[threadIdx.x] = 1; }\n"
    call = "    asc_vf_call<work>(cce::dim3(65), Y);\n"
    assert "at byte 256 of Y (256)" in fault(vector(XY, call, argument), CHECKED)


def test_threads_that_race():
    program = load("X", 256) + then("MTE2", "V") + CALL
    shifted = NEGATE.replace("-x[threadIdx.x]", "x[(threadIdx.x + 1) % 64]")
    assert "race between threads" in fault(vector(XY, program, shifted), CHECKED)


def test_a_missing_barrier_in_a_halving_tree():
    tree = """__simt_vf__ inline void work(__ubuf__ uint8_t* ub) {
  __ubuf__ int32_t* x = (__ubuf__ int32_t*)ub;
  int32_t t = (int32_t)threadIdx.x;
  for (int32_t step = 32; step > 0; step = step / 2) {
    if (t < step) x[t] = x[t] + x[t + step];
    asc_syncthreads();
  }
}
"""
    program = load("X", 256) + then("MTE2", "V") + CALL
    run(vector(XY, program, tree), [x, np.zeros(64, np.int32)])
    for order in ("late", "early", "random"):
        text = fault(vector(XY, program, tree.replace("asc_syncthreads();", "")), Schedule(order, check=True))
        assert "that another thread used since the last barrier" in text


@pytest.mark.parametrize("order", ["late", "early", "random"])
def test_two_blocks_that_store_to_one_place(order):
    """Even where both store the same; atomics may meet."""
    program = load("X", 256) + then("MTE2", "MTE3") + store("Y{}", 256)
    schedule = Schedule(order, check=True)
    with pytest.raises(VirtualFault, match=r"race on Y .*writes what block [01] wrote, and nothing orders the blocks"):
        launch(library(vector(XY, program.format(""))), [x, np.zeros(64, np.int32)], 2, schedule)
    apart = program.format(" + 64 * (int32_t)block_idx")
    run(vector(XY, apart), [x, np.zeros(128, np.int32)], 2, [schedule])


def test_a_block_that_reads_what_another_stores():
    body = "    if ((int32_t)block_idx == 0) asc_store_dev(Y, 5);\n    else asc_store_dev(Y + 1, asc_load_dev(Y));\n"
    with pytest.raises(VirtualFault, match="reads what block 0 wrote, and nothing orders the blocks"):
        launch(library(vector(XY, body)), [x, np.zeros(64, np.int32)], 2, Schedule("late", check=True, threads=1))


def test_bytes_beside_each_other_are_not_a_race():
    function = "__simt_vf__ inline void work(__ubuf__ uint8_t* ub) { ub[threadIdx.x] = (uint8_t)threadIdx.x; }\n"
    y = np.zeros(64, np.uint8)
    run(vector("__gm__ uint8_t* Y", CALL + then("V", "MTE3") + store("Y", 64), function), [y])
    np.testing.assert_array_equal(y, np.arange(64))


def test_a_barrier_that_some_threads_skip():
    function = "__simt_vf__ inline void work(__ubuf__ uint8_t* ub) { if (threadIdx.x < 10) asc_syncthreads(); }\n"
    assert "reached by 10 of 64 threads" in fault(vector(XY, CALL, function), LATE)


def test_a_fault_leaves_the_process_and_the_library_usable():
    source = vector(XY, load("X", 256) + then("MTE2", "MTE3") + store("Y", 256))
    short, y = np.zeros(8, np.int32), np.zeros(64, np.int32)
    for _ in range(3):
        fault(source, LATE, [short, y])
        launch(library(source, False), [x, y], 1, LATE)
        np.testing.assert_array_equal(y, x)


def test_the_same_seed_gives_the_same_fault():
    program = load("X", 256) + CALL + then("V", "MTE3") + store("Y", 256)
    source = vector(XY, program, NEGATE)
    for seed in range(4):
        schedule = Schedule("random", seed, check=True)
        assert fault(source, schedule) == fault(source, schedule)


def test_garbage_before_the_first_write_depends_on_the_seed():
    """Unchecked runs must not see friendly zeros."""
    source = vector("__gm__ int32_t* Y", store("Y", 256))
    seen = set()
    for seed in range(3):
        y = np.zeros(64, np.int32)
        launch(library(source, False), [y], 1, Schedule("late", seed))
        assert y.all()
        seen.add(y.tobytes())
    assert len(seen) == 3


def test_a_source_that_does_not_compile_reports_the_compiler_s_words(tmp_path):
    with pytest.raises(CompileFailed, match="asc_nonsense"):
        build(vector(XY, "    asc_nonsense();\n"), tmp_path)


def test_arguments_must_fit_the_signature():
    source = vector(XY, "")
    assert signature(source).parameters == (("int32_t*", "X"), ("int32_t*", "Y"))
    plain = library(source, False)
    with pytest.raises(ValueError, match="takes 2 arguments"):
        launch(plain, [x], 1, LATE)
    with pytest.raises(ValueError, match="C-contiguous"):
        launch(plain, [x, np.zeros((8, 8), np.int32).T], 1, LATE)
    with pytest.raises(ValueError, match="checked=True"):
        launch(plain, [x, x], 1, CHECKED)
    with pytest.raises(ValueError, match="65535"):
        launch(plain, [x, x], 65536, LATE)
    with pytest.raises(ValueError, match="no Ascend kernel"):
        signature("int main() {}")
