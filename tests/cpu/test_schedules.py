"""The CPU's schedules: rows that ask something of the host, and the bits of every row."""

from __future__ import annotations

import pytest
import torch

import kernelforge as kf
from kernelforge.ops.mxfp4_gemm.op import BUILDER, NEEDS
from kernelforge.runtime import KernelSpec, executable, tuning
from kernelforge_cpu import schedules

TABLE = [
    {"when": {"cores": {"min": 5}, "M": {"max": 16}}, "set": {"block_N": 128}},
    {"when": {"cores": 2}, "set": {"block_N": 512}},
    {"set": {"block_N": 256}},
]
ROWS = tuning.packaged("kernelforge_cpu", "mxfp4_gemm")


def facts(cores: int, avx512: bool = True) -> schedules.Facts:
    return {"cores": cores, "avx512": avx512}


def test_rows_for_other_numbers_of_cores_are_left_out() -> None:
    kept = [[row["set"]["block_N"] for row in schedules.for_host(TABLE, facts(count))] for count in (1, 2, 5, 64)]
    assert kept == [[256], [512, 256], [128, 256], [128, 256]]
    assert "cores" not in schedules.for_host(TABLE, facts(64))[0]["when"]


def test_rows_for_other_instruction_sets_are_left_out() -> None:
    table = [{"when": {"avx512": False}, "set": {"block_N": 256}}, {"set": {"block_N": 64}}]
    kept = [[row["set"]["block_N"] for row in schedules.for_host(table, facts(2, has))] for has in (True, False)]
    assert kept == [[64], [256, 64]]


def test_the_host_answers_everything_that_rows_ask() -> None:
    assert schedules.host()["cores"] >= 1
    assert set(schedules.host()) == set(facts(1))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 96])
def test_every_op_has_a_row_without_other_conditions_for_any_host(count: int) -> None:
    rows = schedules.for_host(ROWS, facts(count))
    problems = [
        {"M": M, "N": N, "K": 384, "experts": experts, "a_format": "bf16"}
        for M in (1, 3, 16, 100, 240, 5000)
        for N in (1, 384, 1536, 4096)
        for experts in (0, 8)
    ]
    for problem in problems:
        assert any(all(tuning.matches(c, problem[name]) for name, c in row["when"].items()) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("tiles", ROWS, ids=lambda row: str(row.get("when")))
def test_bits_do_not_depend_on_the_row(tiles: dict[str, dict[str, int]]) -> None:
    torch.manual_seed(0)
    M, N, K = 270, 300, 1088
    a, a_scale = kf.quantize_mxfp8(torch.randn(M, K))
    w, w_scale = kf.quantize_mxfp4(torch.randn(N, K))
    spec = KernelSpec.of(
        BUILDER, NEEDS, N=N, K=K, experts=0, a_format="e4m3_e8m0", out_dtype="bfloat16", **tiles["set"]
    )
    out = torch.empty(M, N, dtype=torch.bfloat16)
    executable(spec, "cpu")(a, a_scale, w, w_scale, out)
    wanted = kf.mxfp4_gemm(a, a_scale, w, w_scale)
    assert torch.equal(out.view(torch.int16), wanted.view(torch.int16))
