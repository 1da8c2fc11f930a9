"""Each CPU pass does to the IR what its docstring says, and what it makes has NumPy's bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import cpu_kernels
import sliced_dot_kernels
import stream_kernels

from kernelforge import lowering
from kernelforge.ops.mega_moe.kernels.linear1 import moe_linear1
from kernelforge.ops.mxfp4_gemm import reference
from kernelforge.ops.mxfp4_gemm.kernel import mxfp4_gemm
from kernelforge.ops.sliced_gemm.kernel import sliced_gemm
from kernelforge_cpu import compiler, passes
from kernelforge_cpu.backend import CpuBackend
from kernelforge_cpu.passes.block_parameters import block_parameters
from kernelforge_cpu.passes.clear_in_place import clear_in_place
from kernelforge_cpu.passes.fuse_block_accumulate import fuse_block_accumulate
from kernelforge_cpu.passes.hoist_conditions import hoist_conditions
from kernelforge_cpu.passes.host_memory import host_memory
from kernelforge_cpu.passes.state_block_range import state_block_range
from kernelforge_cpu.passes.store_results import store_results
from kernelforge_cpu.passes.take_sliced_dot import take_sliced_dot
from kernelforge_cpu.passes.take_streams import take_streams
from kernelforge_cpu.passes.unroll_loops import unroll_loops


def _lines(function: Any) -> list[str]:
    return [line.strip() for line in function.script().splitlines() if line.strip()]


def _changed(before: Any, after: Any) -> tuple[list[str], list[str]]:
    old, new = _lines(before), _lines(after)
    return [line for line in old if line not in new], [line for line in new if line not in old]


def _compile(function: Any, directory: Path) -> Any:
    backend = CpuBackend()
    arch = backend.default_arch("cpu")
    lowered = lowering.lower(function, backend, arch)
    backend.build(lowered.source, lowered.info, arch, directory)
    return backend.load(directory, lowered.info, "cpu"), lowered


def test_block_parameters_golden() -> None:
    before = cpu_kernels.scaled_rows()
    removed, added = _changed(before, block_parameters(before))
    assert [line for line in removed if "thread_binding" in line] == [
        'for bx in T.thread_binding(8, thread="blockIdx.x"):',
        'for by in T.thread_binding((M + 8 - 1) // 8, thread="blockIdx.y"):',
    ]
    assert added[0] == ("def main(X_handle: T.handle, Y_handle: T.handle, kf_block_x: T.int32, kf_block_y: T.int32):")
    assert "T.copy(T.region(X[kf_block_y * 8, kf_block_x * 8], 1, 8, 8), T.region(x[0, 0], 2, 8, 8))" in added


def test_host_memory_golden() -> None:
    before = cpu_kernels.scaled_rows()
    removed, added = _changed(before, host_memory(before))
    assert removed == [
        'T.sblock_attr({"tl.launch_threads": [32, 1, 1]})',
        'x = T.sblock_alloc_buffer((8, 8), scope="shared.dyn")',
        'y = T.sblock_alloc_buffer((8, 8), scope="local.fragment")',
        "for i in T.parallel(8):",
        "for j in T.parallel(8):",
    ]
    assert added == [
        'x = T.sblock_alloc_buffer((8, 8), scope="local")',
        'y = T.sblock_alloc_buffer((8, 8), scope="local")',
        "for i, j in T.grid(8, 8):",
    ]


def test_host_memory_puts_large_tiles_into_scratch_memory(tmp_path: Path) -> None:
    function = cpu_kernels.scaled_rows(columns=256, rows=128, tile=256)
    run, lowered = _compile(function, tmp_path)
    assert [(w.dtype, w.shape) for w in lowered.info.workspaces] == [
        ("float32", (128, 256))
    ]  # the result needs no tile
    x = torch.randn(300, 256)
    out = torch.full_like(x, float("nan"))
    run(x, out)
    assert np.array_equal(out.numpy().view(np.int32), (x.numpy() * np.float32(0.1)).view(np.int32))


def test_state_block_range_golden() -> None:
    before = cpu_kernels.scaled_rows()
    removed, added = _changed(before, state_block_range(before))
    assert removed == []
    assert added == [
        "if bx >= 0 and bx < 8:",
        "if by >= 0 and by < (M + 8 - 1) // 8:",
    ]


def test_unroll_loops_golden() -> None:
    before = cpu_kernels.guarded_pairs()
    removed, added = _changed(before, unroll_loops(before))
    assert removed == [
        "for p in T.unroll(2):",
        'difference: T.float32 = X[bx * 3 + i, 2 * c + p] - T.Cast("float32", p)',
        "Y[bx * 3 + i, 2 * c + p] = difference",
    ]
    assert added == [
        'difference: T.float32 = X[bx * 3 + i, T.Add(2 * c, 0)] - T.Cast("float32", 0)',
        "Y[bx * 3 + i, T.Add(2 * c, 0)] = difference",
        'difference_1: T.float32 = X[bx * 3 + i, 2 * c + 1] - T.Cast("float32", 1)',
        "Y[bx * 3 + i, 2 * c + 1] = difference_1",
    ]


def test_hoist_conditions_golden() -> None:
    before = unroll_loops(cpu_kernels.guarded_pairs())
    lines = _lines(hoist_conditions(before))
    start = lines.index("for i in T.parallel(3):")
    assert lines[start : start + 3] == [
        "for i in T.parallel(3):",
        "if bx * 3 + i < M:",
        "for c in T.parallel(32):",
    ]


def test_of_two_conditions_the_one_on_the_row_leaves_the_loop_over_columns() -> None:
    lines = _lines(hoist_conditions(cpu_kernels.guarded_rows_and_columns()))
    start = lines.index("for i in T.parallel(4):")
    assert lines[start : start + 4] == [
        "for i in T.parallel(4):",
        "if by * 4 + i < M:",
        "for c in T.parallel(64):",
        "if bx * 64 + c < 70:",
    ]


def test_a_condition_on_a_variable_leaves_a_loop_that_does_not_write_it() -> None:
    lines = _lines(hoist_conditions(cpu_kernels.condition_on_a_variable()))
    start = lines.index("if left[0] > 0:")
    assert lines[start + 1] == "for c in range(64):"


def test_a_condition_that_reads_memory_or_its_loop_stays_in_the_loop() -> None:
    before = cpu_kernels.conditions_that_change()
    assert _lines(hoist_conditions(before)) == _lines(before)


def test_rewritten_loops_keep_their_bits(tmp_path: Path) -> None:
    run, lowered = _compile(cpu_kernels.guarded_pairs(), tmp_path)
    assert lowered.source.count("Y[") == 2
    assert "for (int32_t p" not in lowered.source
    x = torch.randn(7, 64)
    out = torch.full_like(x, float("nan"))
    run(x, out)
    wanted = x.numpy().copy()
    wanted[:, 1::2] -= np.float32(1)
    assert np.array_equal(out.numpy().view(np.int32), wanted.view(np.int32))


def test_take_sliced_dot_golden() -> None:
    before = sliced_dot_kernels.by_chunks(32, 16, 640, "bfloat16")
    after = take_sliced_dot(before)
    assert [line for line in _lines(after) if "kf_checked" in line] == [
        'T.call_extern("int32", "kf_checked", T.call_extern("int32", "kf_sliced_dot_accumulate", '
        'T.address_of(acc[0, 0]), T.Cast("int64", 16), T.address_of(x_tile[0, 0]), T.Cast("int64", 128), '
        "T.address_of(w_exponent[0]), T.address_of(buffer[0, 0]), T.address_of(buffer_1[0, 0]), "
        'T.address_of(buffer_2[0, 0]), T.Cast("int64", 128), 32, 16, 128, 0, 2, 4))'
    ]
    assert not [line for line in _lines(after) if "T.gemm" in line or "kf.composite" in line]


@pytest.mark.parametrize(
    ("features", "rows", "taken"),
    [({"avx2"}, 256, True), ({"avx2", "avx512f"}, 16, True), ({"avx2", "avx512f"}, 64, False), ({"asimd"}, 16, False)],
)
def test_take_rows_dot_golden(monkeypatch: pytest.MonkeyPatch, features: set[str], rows: int, taken: bool) -> None:
    monkeypatch.setattr(compiler, "has_feature", features.__contains__)
    before = sliced_gemm(2, 40, 160, "bfloat16", "bfloat16", "bfloat16", False, False, rows, 64, 1)
    calls = [line for line in _lines(take_sliced_dot(before)) if "kf_rows_dot_accumulate" in line]
    a, b = (f'T.call_pure_extern("int64", "kf_index", {column})' for column in ("column[0]", "0"))
    assert (
        calls
        == [
            'T.call_extern("int32", "kf_checked", T.call_extern("int32", "kf_rows_dot_accumulate", '
            'T.address_of(acc[0, 0]), T.Cast("int64", 64), '
            f'T.address_of(a[row[0], {a}]), T.Cast("int64", 320), '
            f'T.address_of(b[b_row[0], {b}]), T.Cast("int64", 160), '
            f"T.min({rows}, rows - row[0]), T.min(64, 40 - b_row[0] % 40), 160, 128, 0))"
        ]
        * taken
    )


def test_take_streams_golden() -> None:
    after = take_streams(stream_kernels.mix(4, 160, "bfloat16", 4, 160, 128))
    places = 'first_token[0], T.call_pure_extern("int64", "kf_index", first_column[0])'
    assert [line for line in _lines(after) if "kf_mix_streams" in line] == [
        'T.call_extern("int32", "kf_checked", T.call_extern("int32", "kf_mix_streams", '
        f'T.address_of(out[{places}]), T.Cast("int64", 640), T.address_of(y[{places}]), T.Cast("int64", 160), '
        f'T.address_of(x[{places}]), T.Cast("int64", 640), T.address_of(gate[0, 0]), T.Cast("int64", 4), '
        'T.address_of(m[0, 0]), T.Cast("int64", 16), '
        "T.int64(160), T.min(4, tokens_1[0] - first_token[0]), tokens_1[0], 160, 4, 0))"
    ]
    assert not [line for line in _lines(after) if "kf.composite" in line]
    plain = sliced_dot_kernels.by_chunks(32, 16, 640, "bfloat16")
    assert take_streams(plain).same_as(plain)


def test_fuse_block_accumulate_golden() -> None:
    before = mxfp4_gemm(100, 256, 0, "e4m3_e8m0", "float32", 32, 64, 128, 1, 1)
    after = fuse_block_accumulate(before)
    calls = [line for line in _lines(after) if "kf_mx_block_accumulate" in line]
    assert calls == [
        'T.call_extern("int32", "kf_checked", T.call_extern("int32", "kf_mx_block_accumulate_e4m3_e8m0", '
        "T.address_of(acc[0, 0]), T.int64(64), "
        'T.address_of(A[row, T.call_pure_extern("int64", "kf_index", k * 128)]), T.Cast("int64", 256), '
        'T.address_of(A_scale[row, T.call_pure_extern("int64", "kf_index", k * 4)]), T.Cast("int64", 8), '
        'T.address_of(W[column, T.call_pure_extern("int64", "kf_index", k * 64)]), T.Cast("int64", 128), '
        'T.address_of(W_scale[column, T.call_pure_extern("int64", "kf_index", k * 4)]), T.Cast("int64", 8), '
        "T.min(32, M - row), T.min(64, 100 - column), T.min(64, 128 - k * 64) * 2, 0))"
    ]
    kept = [line for line in _lines(after) if line.startswith("T.copy")]
    assert kept == ["T.copy(T.region(result[0, 0], 1, 32, 64), T.region(out[row, column], 2, 32, 64))"]
    allocated = [line.partition(" ")[0] for line in _lines(after) if "sblock_alloc_buffer" in line]
    assert not {"a", "a_scale", "w", "w_scale"} & set(allocated)


def test_clear_in_place_golden() -> None:
    before = fuse_block_accumulate(mxfp4_gemm(100, 256, 0, "e4m3_e8m0", "float32", 32, 64, 128, 1, 1))
    removed, added = _changed(before, clear_in_place(before))
    assert [line for line in removed if "call_extern" not in line] == ["T.fill(T.region(acc[0, 0], 2, 32, 64), 0)"]
    used, columns = "T.max(T.min(32, M - row), 0)", "T.max(T.min(64, 100 - column), 0)"
    nothing, call, *rest = added
    assert nothing == "T.evaluate(0)"
    assert rest == [
        f"for i, j in T.grid(32 - {used}, 64):",
        f"acc[{used} + i, j] = T.float32(0.0)",
        f"for i, j in T.grid({used}, 64 - {columns}):",
        f"acc[i, {columns} + j] = T.float32(0.0)",
    ]
    assert call.endswith('T.min(64, 128 - k * 64) * 2, T.Cast("int32", k == 0)))')


def test_what_is_not_summed_is_cleared_where_its_extent_is_known() -> None:
    before = fuse_block_accumulate(moe_linear1(32, 64, 2, 10.0, 8, 32, 64, 1, 1))
    lines = [line for line in _lines(clear_in_place(before)) if "limit[0]" in line]
    assert lines[0].startswith("limit[0] = ")
    used = "T.max(T.min(T.min(8, M - row[0]), limit[0]), 0)"
    assert f"for i, j in T.grid(T.min(limit[0], 8) - {used}, 32):" in lines, (
        "rows that nobody asked for stay as they are"
    )


def test_a_sum_that_does_not_start_at_zero_is_not_cleared() -> None:
    before = fuse_block_accumulate(cpu_kernels.whole_tile(start_elsewhere=True))
    assert "kf_mx_block_accumulate" in before.script()
    assert _lines(clear_in_place(before)) == _lines(before)


def test_a_cleared_tile_is_zero_beyond_what_is_summed(tmp_path: Path) -> None:
    run, _ = _compile(cpu_kernels.whole_tile(), tmp_path)
    rng = np.random.default_rng(0)
    a, w = (rng.integers(0, 256, (rows, 32), dtype=np.uint8) for rows in (20, 13))
    a_scale, w_scale = (rng.integers(120, 134, (rows, 2), dtype=np.uint8) for rows in (20, 13))
    out = torch.full((32, 16), float("nan"))
    run(*map(torch.from_numpy, (a, a_scale, w, w_scale)), out)
    wanted = np.zeros((32, 16), np.float32)
    wanted[:20, :13] = reference.mxfp4_gemm(a, a_scale, w, w_scale, "e2m1", "float32")
    assert np.array_equal(out.numpy().view(np.int32), wanted.view(np.int32))


def test_store_results_golden() -> None:
    before = cpu_kernels.scaled_rows(columns=60)
    removed, added = _changed(before, store_results(before))
    assert removed == [
        'y = T.sblock_alloc_buffer((8, 8), scope="local.fragment")',
        "for i in T.parallel(8):",
        "for j in T.parallel(8):",
        "y[i, j] = x[i, j] * T.float32(0.10000000000000001)",
        "T.copy(T.region(y[0, 0], 1, 8, 8), T.region(Y[by * 8, bx * 8], 2, 8, 8))",
    ]
    assert added == [
        "for i, j in T.grid(T.min(8, M - by * 8), T.min(8, 60 - bx * 8)):",
        "Y[by * 8 + i, bx * 8 + j] = x[i, j] * T.float32(0.10000000000000001)",
    ]


@pytest.mark.parametrize("kernel", ["read_again", "row_by_row", "in_place"])
def test_a_result_that_is_more_than_stored_keeps_its_tile(kernel: str) -> None:
    before = cpu_kernels.kept_tiles(kernel)
    assert _lines(store_results(before)) == _lines(before)


def test_a_region_that_cannot_be_taken_keeps_its_body(tmp_path: Path) -> None:
    run, lowered = _compile(cpu_kernels.unfusible(), tmp_path)
    assert "kf_mx_block_accumulate" not in lowered.source
    assert "kf_gemm_s8" in lowered.source
    rng = np.random.default_rng(0)
    a, w = (rng.integers(0, 256, (rows, 32), dtype=np.uint8) for rows in (20, 16))
    a_scale, w_scale = (rng.integers(120, 134, (rows, 2), dtype=np.uint8) for rows in (20, 16))
    out = torch.full((20, 16), float("nan"))
    run(*map(torch.from_numpy, (a, a_scale, w, w_scale)), out)
    wanted = reference.mxfp4_gemm(a, a_scale, w[::-1], w_scale, "e2m1", "float32")
    assert np.array_equal(out.numpy().view(np.int32), wanted.view(np.int32))


@pytest.mark.parametrize("transposed", [True, False])
def test_int8_gemm_is_the_exact_dot(tmp_path: Path, transposed: bool) -> None:
    run, lowered = _compile(cpu_kernels.int8_dot(transposed=transposed), tmp_path)
    assert "kf_gemm_s8" in lowered.source
    rng = np.random.default_rng(1)
    a = rng.integers(-128, 128, (37, 64), dtype=np.int8)
    b = rng.integers(-128, 128, (48, 64) if transposed else (64, 48), dtype=np.int8)
    a[0], b[0] = -128, -128  # the largest sum
    out = torch.zeros((37, 48), dtype=torch.int32)
    run(torch.from_numpy(a), torch.from_numpy(b), out)
    wide = b.astype(np.int64).T if transposed else b.astype(np.int64)
    assert np.array_equal(out.numpy(), a.astype(np.int64) @ wide)


def test_every_pass_has_a_name_and_a_docstring() -> None:
    for step in passes.PIPELINE:
        assert step.__name__.isidentifier()
        assert step.__doc__
