"""Each Ascend pass does to the IR what its docstring says, and no more: lines that go, lines that come."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import z3

sys.path.insert(0, str(Path(__file__).parent))

import ascend_kernels as kernels
import ascend_pass_kernels as small
from ascend_harness import backend

from kernelforge.lowering import lower, lower_composites
from kernelforge.lowering.tir import tirx
from kernelforge_ascend import passes, scheduling
from kernelforge_ascend.backend import ARCH
from kernelforge_ascend.modulo_schedule import Problem, schedule
from kernelforge_ascend.passes import LoweringError
from kernelforge_ascend.passes.rewriter import root_block, walk


def lines(function) -> list[str]:
    text = [line.strip() for line in function.script().splitlines()]
    return [line for line in text if line and not line.startswith("# Metadata")]


def changed(before, after) -> tuple[list[str], list[str]]:
    """Lines that only one of the two functions has."""
    old, new = lines(before), lines(after)
    return [line for line in old if line not in new], [line for line in new if line not in old]


def through(function, *steps):
    for step in steps:
        function = step(function)
    return function


def test_flatten_grid_golden():
    before = small.three_axes()
    removed, added = changed(before, passes.flatten_grid(before))
    assert removed == [
        'for bx in T.thread_binding(4, thread="blockIdx.x"):',
        'for by in T.thread_binding(3, thread="blockIdx.y"):',
        'for bz in T.thread_binding(2, thread="blockIdx.z"):',
        'T.sblock_attr({"tl.launch_threads": [128, 1, 1]})',
        "Y[bz, by, bx * 8 + i] = X[bz, by, bx * 8 + i]",
    ]
    assert added == [
        'for block in T.thread_binding(24, thread="blockIdx.x"):',
        "Y[block // 4 // 3, block // 4 % 3, block % 4 * 8 + i] = X[block // 4 // 3, block // 4 % 3, block % 4 * 8 + i]",
    ]


def test_persistent_grid_golden():
    before = passes.flatten_grid(small.elementwise())
    removed, added = changed(before, passes.persistent_grid(before))
    assert removed == [
        'for block in T.thread_binding((M + 16 - 1) // 16, thread="blockIdx.x"):',
        "row: T.int32 = block * 16",
    ]
    assert added == [
        'for core in T.thread_binding(T.min((M + 16 - 1) // 16, 64), thread="blockIdx.x"):',
        "for turn in range(((M + 16 - 1) // 16 - core + 63) // 64):",
        "row: T.int32 = (turn * 64 + core) * 16",
    ]


def test_persistent_grid_leaves_a_grid_that_fits_the_cores_and_tiles_that_fill_ub():
    for kernel in (small.elementwise(64 * 16), small.filling_ub()):
        before = passes.flatten_grid(kernel)
        assert passes.persistent_grid(before).same_as(before)
        assert backend.pass_configs(ARCH, before) == {}
    turns = passes.persistent_grid(passes.flatten_grid(small.elementwise(64 * 16 + 1)))
    assert backend.pass_configs(ARCH, turns) == {"tl.disable_shared_memory_reuse": True}


def test_inline_bindings_golden():
    before = passes.flatten_grid(small.bindings())
    removed, added = changed(before, passes.inline_bindings(before))
    assert removed == [
        "row: T.int32 = block * 16",
        "T.copy(T.region(X[row + first, 0], 1, 16, 32), T.region(x[0, 0], 2, 16, 32))",
        "T.copy(T.region(x[0, 0], 1, 16, 32), T.region(Y[row, 0], 2, 16, 32))",
    ]
    assert added == [
        "T.copy(T.region(X[block * 16 + first, 0], 1, 16, 32), T.region(x[0, 0], 2, 16, 32))",
        "T.copy(T.region(x[0, 0], 1, 16, 32), T.region(Y[block * 16, 0], 2, 16, 32))",
    ], "the binding of a loaded value stays"


def test_gemm_to_cube_golden_for_operands_from_global_memory():
    before = through(kernels.oriented_gemm(32, 64, 96, False, False), passes.flatten_grid)
    removed, added = changed(before, passes.gemm_to_cube(before))
    gemm = "T.region({}, 1, {}), T.region({}, 1, {}), T.region({}, 2, 32, 64), T.bool(False), T.bool({}), 32, 64, 96, 0"
    assert removed == [
        'a = T.sblock_alloc_buffer((32, 96), "int8", scope="shared.dyn")',
        'b = T.sblock_alloc_buffer((96, 64), "int8", scope="shared.dyn")',
        "T.copy(T.region(A[0, 0], 1, 32, 96), T.region(a[0, 0], 2, 32, 96))",
        "T.copy(T.region(B[0, 0], 1, 96, 64), T.region(b[0, 0], 2, 96, 64))",
        f"T.gemm({gemm.format('a[0, 0]', '32, 96', 'b[0, 0]', '96, 64', 'c[0, 0]', False)}, T.bool(True), 0, 0, 0)",
    ]
    assert added == [
        'c_l0c = T.handle("int32", "shared.l0c")',
        'T.sblock_attr({"layout_map": {c_l0c: metadata["tl.AscendFractalLayout"][0]}})',
        'a_l1 = T.sblock_alloc_buffer((32, 96), "int8", scope="shared.l1")',
        'b_l1 = T.sblock_alloc_buffer((64, 96), "int8", scope="shared.l1")',
        'c_l0c_1 = T.sblock_alloc_buffer((32, 64), "int32", data=c_l0c, scope="shared.l0c")',
        "T.ascend_copy(T.region(A[0, 0], 1, 32, 96), T.region(a_l1[0, 0], 2, 32, 96))",
        "T.ascend_copy(T.region(B[0, 0], 1, 96, 64), T.region(b_l1[0, 0], 2, 64, 96), transpose=1)",
        f"T.gemm({gemm.format('a_l1[0, 0]', '32, 96', 'b_l1[0, 0]', '64, 96', 'c_l0c_1[0, 0]', True)}, "
        "T.bool(True), 0, 0, 0)",
        "T.ascend_copy(T.region(c_l0c_1[0, 0], 1, 32, 64), T.region(c[0, 0], 2, 32, 64))",
    ]


def test_gemm_to_cube_golden_for_operands_from_vector_code():
    before = through(small.doubled_operand(), passes.flatten_grid)
    _, added = changed(before, passes.gemm_to_cube(before))
    assert 'workspace_a_0: T.Buffer((2097120, 32), "int8")' in added[0], "a slice for each of up to 65535 blocks"
    copies = [line for line in added if line.startswith("T.ascend_copy")]
    assert copies == [
        "T.ascend_copy(T.region(B[0, 0], 1, 32, 32), T.region(b_l1[0, 0], 2, 32, 32))",
        "T.ascend_copy(T.region(a[0, 0], 1, 32, 32), T.region(workspace_a_0[block * 32, 0], 2, 32, 32))",
        "T.ascend_copy(T.region(workspace_a_0[block * 32, 0], 1, 32, 32), T.region(a_l1[0, 0], 2, 32, 32))",
        "T.ascend_copy(T.region(c_l0c_1[0, 0], 1, 32, 32), T.region(c[0, 0], 2, 32, 32))",
        "T.ascend_copy(T.region(d_l0c_1[0, 0], 1, 32, 32), T.region(d[0, 0], 2, 32, 32))",
    ], "the second gemm on the same tile stages nothing again"


@pytest.mark.parametrize("clear", ["fill", "first"])
def test_gemm_to_cube_keeps_sums_of_a_loop_in_l0c(clear):
    before = through(kernels.accumulating_gemm(64, 64, 256, 64, 64, 64, clear), passes.flatten_grid)
    after = lines(passes.gemm_to_cube(before))
    gemm = next(line for line in after if line.startswith("T.gemm"))
    assert gemm.endswith("0, k == 0, 0, 0, 0)")
    copies = [line for line in after if "c_l0c_1[0, 0], 1" in line]
    assert len(copies) == 1
    assert after.index(copies[0]) > after.index(gemm)


def test_gemm_to_cube_adds_in_vector_code_what_cannot_stay():
    before = through(kernels.interrupted_gemm(32, 64, 128, 32), passes.flatten_grid)
    _, added = changed(before, passes.gemm_to_cube(before))
    assert "c[i, j] = c[i, j] + c_dot[i, j]" in added


def test_stage_operands_golden():
    before = through(small.direct_rows(), passes.flatten_grid, passes.inline_bindings)
    removed, added = changed(before, passes.stage_operands(before))
    assert removed == [
        "Y[block * 16 + i, j] = X[T.min(block * 16 + i, M - 1), j] * 2 + bias[j] + scale[T.min(j // 8, 2)]"
    ]
    assert added == [
        'X_tile0 = T.sblock_alloc_buffer((16, 48), "int32", scope="shared.dyn")',
        'bias_tile1 = T.sblock_alloc_buffer((48,), "int32", scope="shared.dyn")',
        'scale_tile2 = T.sblock_alloc_buffer((6,), "int32", scope="shared.dyn")',
        'Y_tile3 = T.sblock_alloc_buffer((16, 48), "int32", scope="shared.dyn")',
        'with T.attr({}, "tl.ascend_task", 1):',
        "T.ascend_copy(T.region(X[T.max(T.min(block * 16, M - 1), 0), 0], 1, 16, 48), "
        "T.region(X_tile0[0, 0], 2, 16, 48))",
        "T.ascend_copy(T.region(bias[0], 1, 48), T.region(bias_tile1[0], 2, 48))",
        "T.ascend_copy(T.region(scale[T.min(0, 2)], 1, 6), T.region(scale_tile2[0], 2, 6))",
        "Y_tile3[i, j] = X_tile0[T.min(block * 16 + i, M - 1) - T.min(block * 16, M - 1), j] * 2 + bias_tile1[j] "
        "+ scale_tile2[T.min(j // 8, 2)]",
        'Y_1 = T.Buffer((T.min(M, block * 16 + rows[0]), 48), "int32", data=Y.data, strides=(48, 1))',
        "T.ascend_copy(T.region(Y_tile3[0, 0], 1, 16, 48), T.region(Y_1[block * 16, 0], 2, 16, 48))",
    ], "the view of Y ends where the rows do, so the copy leaves out the others"


def test_stage_operands_gathers_no_more_than_boxes():
    before = through(small.not_boxes(), passes.flatten_grid, passes.inline_bindings)
    after = lines(passes.stage_operands(before))
    assert "gathered_tile1[i, j] = X[table_tile0[i], j] + first_value" in after, "table by DMA, X by the threads"
    assert "first_value: T.int32 = first[0]" in after, "one integer, read by the control program"
    for left in (
        "scattered[table_tile2[i]] = i",
        "turned[i] = turned[i] * 3",
        "sparse[2 * i] = i",
        "if table_tile2[i] > 20:",
        "chosen[i] = i",
    ):
        assert left in after


def test_stage_operands_cuts_a_box_of_three_dimensions_into_copies():
    before = through(small.streams(gap=True), passes.flatten_grid, passes.inline_bindings)
    after = lines(passes.stage_operands(before))
    loads = [line for line in after if line.startswith("T.ascend_copy(T.region(X[")]
    assert loads == [
        f"T.ascend_copy(T.region(X[block * 8, {column}], 1, 8, 60), T.region(X_tile0[0, {j}, 0], 2, 8, 1, 60))"
        for j, column in enumerate((0, 64, 128, 192))
    ]
    assert 'X_tile0 = T.sblock_alloc_buffer((8, 4, 64), "int32", scope="shared.dyn")' in after, "rows of 32 bytes"


def test_stage_operands_leaves_what_does_not_fit():
    before = through(small.streams(C=1024), passes.flatten_grid, passes.inline_bindings)
    after = lines(passes.stage_operands(before))
    assert not any("X_tile" in line or "Y_tile" in line for line in after), "128 KiB each"
    assert any("total_tile0" in line for line in after)


@pytest.mark.parametrize("turned", [False, True])
def test_stage_operands_counts_the_rows_of_one_vector_core(turned):
    steps = (passes.flatten_grid, passes.inline_bindings, passes.gemm_to_cube)
    before = through(kernels.biased_gemm(128, 128, 64, turned), *steps)
    after = passes.stage_operands(before)
    tiles = [line for line in lines(after) if "_tile" in line and "alloc_buffer" in line]
    if turned:  # every core needs all of D: 32 KiB of sums, 64 of D, 32 of C
        assert tiles == []
        return
    assert tiles == [
        f'{name} = T.sblock_alloc_buffer((128, 128), "int32", scope="shared.dyn")' for name in ("D_tile0", "C_tile1")
    ]
    halved = lines(through(after, passes.vector_regions, passes.split_rows))
    for name in ("c", "D_tile0", "C_tile1"):
        assert f'{name} = T.sblock_alloc_buffer((64, 128), "int32", scope="shared.dyn")' in halved


def test_vector_regions_golden():
    before = through(small.elementwise(), passes.flatten_grid, passes.inline_bindings)
    removed, added = changed(before, passes.vector_regions(before))
    assert removed == [
        'y = T.sblock_alloc_buffer((16, 32), scope="local.fragment")',
        "T.copy(T.region(X[block * 16, 0], 1, 16, 32), T.region(x[0, 0], 2, 16, 32))",
        "T.fill(T.region(y[0, 0], 2, 16, 32), 0)",
        "T.copy(T.region(y[0, 0], 1, 16, 32), T.region(Y[block * 16, 0], 2, 16, 32))",
    ]
    function = [line for line in lines(passes.vector_regions(before)) if "threadIdx.x" in line]
    assert function == ['simtvf_tx = T.launch_thread("threadIdx.x", 128)'] * 3
    assert 'y = T.sblock_alloc_buffer((16, 32), scope="shared.dyn")' in added
    assert 'twice = T.sblock_alloc_buffer((1,), scope="local.var")' not in added, (
        "it moves, unchanged, into its function"
    )
    copies = [line for line in added if line.startswith("T.ascend_copy")]
    assert copies == [
        "T.ascend_copy(T.region(X[block * 16, 0], 1, 16, 32), T.region(x[0, 0], 2, 16, 32))",
        "T.ascend_copy(T.region(y[0, 0], 1, 16, 32), T.region(Y[block * 16, 0], 2, 16, 32))",
    ]
    assert "x[p0, p1] = T.float32(0.0)" in added, "rows beyond M read as zero"


def test_vector_regions_fill_nothing_where_the_tile_stays_inside():
    before = through(small.elementwise(M=64), passes.flatten_grid, passes.inline_bindings)
    assert "x[p0, p1] = T.float32(0.0)" not in lines(passes.vector_regions(before))


def test_split_rows_golden():
    steps = (passes.flatten_grid, passes.inline_bindings, passes.gemm_to_cube, passes.vector_regions)
    before = through(kernels.guarded_rows_gemm(64, 64, 64), *steps)
    removed, added = changed(before, passes.split_rows(before))
    assert removed == [
        'T.sblock_attr({"layout_map": {c_l0c: metadata["tl.AscendFractalLayout"][0]}})',
        'c = T.sblock_alloc_buffer((64, 64), "int32", scope="shared.dyn")',
        "T.ascend_copy(T.region(c_l0c_1[0, 0], 1, 64, 64), T.region(c[0, 0], 2, 64, 64))",
        "for i in T.parallel(64):",
        "if j <= i:",
        "C[i, j] = c[i, j] + 1000 * i",
    ]
    assert added == [
        'for sid in T.thread_binding(2, thread="cthread"):',
        'T.sblock_attr({"layout_map": {c_l0c: metadata["tl.AscendFractalLayout"][0]}, "vector_count": 2})',
        'c = T.sblock_alloc_buffer((32, 64), "int32", scope="shared.dyn")',
        "T.ascend_copy(T.region(c_l0c_1[0, 0], 1, 64, 64), T.region(c[0, 0], 2, 32, 64), "
        "dual_dst_ctl=1, l2_cache_ctrl=0)",
        "for i in T.parallel(32):",
        "if j <= i + sid * 32:",
        "C[i + sid * 32, j] = c[i, j] + 1000 * (i + sid * 32)",
    ]


def test_split_rows_keeps_what_is_read_by_column_whole():
    steps = (passes.flatten_grid, passes.inline_bindings, passes.gemm_to_cube, passes.vector_regions)
    text = lines(passes.split_rows(through(kernels.scaled_gemm(64, 256, 64, 64, 64), *steps)))
    assert 'sa = T.sblock_alloc_buffer((32, 1), scope="shared.dyn")' in text
    assert 'sb = T.sblock_alloc_buffer((64, 1), scope="shared.dyn")' in text
    assert any("SA[block * 64 + sid * 32, k], 1, 32, 1" in line for line in text)
    assert any("SB[0, k], 1, 64, 1" in line for line in text)


def test_split_rows_leaves_one_core_idle_where_rows_mix():
    steps = (passes.flatten_grid, passes.inline_bindings, passes.gemm_to_cube, passes.vector_regions)
    before = through(kernels.column_sums_gemm(32, 64, 64), *steps)
    assert any('"vector_count": 1' in line for line in lines(passes.split_rows(before)))


def test_split_rows_does_not_touch_kernels_without_a_gemm():
    before = through(small.elementwise(), passes.flatten_grid, passes.inline_bindings, passes.vector_regions)
    assert passes.split_rows(before).same_as(before)


def test_balance_threads_golden():
    before = through(kernels.row_sums(50, 160, 16), passes.flatten_grid, passes.vector_regions)
    removed, added = changed(before, passes.balance_threads(before))
    assert removed == []
    assert added == ['simtvf_tx = T.launch_thread("threadIdx.x", 16)'], "16 rows, one thread each"


def test_declare_fp32_golden():
    prelude = root_block(passes.declare_fp32(small.elementwise())).annotations["pragma_import_c"]
    assert "#pragma clang fp contract(off)" in prelude
    assert "kf_mul(float a, float b) { return a * b; }" in prelude


def buffers_by_tile(function) -> dict[str, set[int]]:
    """By the name of a tile, the addresses of the buffers through which the function reaches its memory."""
    found: dict[str, set[int]] = {}

    def visit(node) -> None:
        if isinstance(node, (tirx.BufferLoad, tirx.BufferStore)) and node.buffer.scope() != "global":
            found.setdefault(node.buffer.data.name, set()).add(node.buffer.__chandle__())

    walk(function.body, visit)
    return found


def test_own_views_golden_gives_each_task_its_buffers():
    before = through(small.elementwise(), *passes.PIPELINE[: passes.PIPELINE.index(passes.own_views)])
    after = passes.own_views(before)
    assert {name: len(views) for name, views in buffers_by_tile(before).items()} == {"x": 1, "y": 1, "twice": 1}
    assert {name: len(views) for name, views in buffers_by_tile(after).items()} == {
        "x": 3,  # filled where rows end, loaded from X, read by the vector function
        "y": 4,  # cleared, read and written by the vector function, stored to Y
        "twice": 2,  # written and read
    }


def test_own_views_keep_tiles_that_are_copied_in_parts():
    before = through(small.parts(), *passes.PIPELINE[: passes.PIPELINE.index(passes.own_views)])
    assert len(buffers_by_tile(passes.own_views(before))["x"]) == 1


@pytest.mark.parametrize("kernel", [small.elementwise, small.parts, small.direct_rows, small.doubled_operand])
def test_own_views_change_nothing_in_the_generated_code(kernel, monkeypatch):
    with_views = lower(kernel(), backend, ARCH).source
    without = [step for step in passes.PIPELINE if step is not passes.own_views]
    monkeypatch.setattr(backend, "passes", lambda arch: without)
    assert lower(kernel(), backend, ARCH).source == with_views


def test_every_pass_has_a_name_and_a_docstring():
    assert [step.__name__ for step in passes.PIPELINE][:3] == ["lower_rounded_dots", "lower_composites", "flatten_grid"]
    assert lower_composites in passes.PIPELINE
    for step in passes.PIPELINE:
        assert step.__doc__


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: kernels.oriented_gemm(24, 64, 32, False, True), "24 x 64: the cube unit needs multiples of 16"),
        (lambda: small.converting_copy(), "use T.cast inside T.Parallel"),
        (lambda: small.global_copy(), "both are global; use shared memory"),
        (lambda: small.two_orientations(), "use one tile for each orientation"),
    ],
)
def test_what_cannot_be_lowered_says_what_to_do(function, message):
    with pytest.raises(LoweringError, match=message):
        through(function(), *passes.PIPELINE[: passes.PIPELINE.index(passes.vector_regions) + 1])


def test_the_loop_scheduler_leaves_z3_as_it_found_it(monkeypatch):
    seen = []

    def fails(*arguments):
        seen.append(z3.get_param("smt.arith.solver"))
        raise RuntimeError("no schedule")

    before = z3.get_param("smt.arith.solver")
    monkeypatch.setattr(scheduling, "_schedule", fails)
    with pytest.raises(RuntimeError, match="no schedule"):
        scheduling.schedule_loop(1)
    assert seen == ["2"]
    assert z3.get_param("smt.arith.solver") == before


def test_the_loop_scheduler_states_tilelangs_problem(monkeypatch):
    calls = []
    original = scheduling._schedule
    monkeypatch.setattr(scheduling, "_schedule", lambda *a: calls.append((a, original(*a))) or calls[-1][1])
    lower(kernels.interrupted_gemm(32, 64, 128, 32), backend, ARCH)
    assert calls
    for arguments, (starts, versions, interval) in calls:
        its_starts, its_versions, its_interval = scheduling.z3_schedule_loop_ffi(*arguments)
        assert abs(interval - its_interval) <= 0.06 * its_interval
        assert (len(starts), len(versions)) == (len(its_starts), len(its_versions))
        latencies, data = list(arguments[1]), [tuple(map(int, one)) for one in arguments[4]]
        assert min(starts) < interval
        for first, second, distance, latency in data:
            turns = distance if distance >= 0 else versions[-distance - 1]
            assert starts[second] - starts[first] >= latency - interval * turns
        for a, b in (tuple(map(int, one)) for one in arguments[5]):
            ahead = (starts[b] - starts[a]) % interval
            assert ahead >= int(arguments[2][a])
            assert interval - ahead >= int(arguments[2][b])
        assert len(starts) == len(latencies)


def test_tasks_may_share_storage_in_several_ways():
    pair = {"exclusive": [(0, 1), (1, 0)], "owners": [(0, 1, 3, 5), (0, 1, 4, 2)]}
    rest = {"data": [], "in_order": [], "sizes": [], "memories": [], "stage_order": []}
    problem = Problem(stages=2, latencies=[5, 5], issue=[2, 2], pipes=[1, 1], one_window=False, **pair, **rest)
    starts, versions, interval = schedule(problem)
    ahead = (starts[1] - starts[0]) % interval
    assert (versions, interval) == ([], 9)  # 4 cycles one way, 5 the other
    assert ahead == 4


def test_schedules_of_given_stages_are_tilelangs(monkeypatch):
    monkeypatch.setattr(scheduling, "z3_schedule_loop_ffi", lambda *arguments: arguments)
    given = (2, [1], [1], [1], [], [], [], [], [], [], [], False, [0], True)
    assert scheduling.schedule_loop(*given) == given
