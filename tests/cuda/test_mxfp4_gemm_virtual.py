"""MXFP4 GEMM on the virtual CUDA device: the reference's bits, for every format, tile, batch and schedule."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import cuda_kernels as kernels

from kernelforge.backends import Execution, executing
from kernelforge.ops.mxfp4_gemm import reference
from kernelforge_cuda import nvcc

pytest.importorskip("kernelforge_cuda.virtual", reason="the PTX executor is not built")

from kernelforge_cuda.virtual_launch import VirtualExecutable

pytestmark = pytest.mark.skipif(nvcc.find() is None, reason="nvcc is not installed")

N, K = 192, 416  # partial tiles of 64 rows below, a partial tile of 128 along K
ARCHS = ("sm_80", "sm_90a")
CHECKED, UNCHECKED = Execution(), Execution(check=False)


def on_every_arch(*cases):
    """Each case on both architectures; an ordinary run takes each once, alternating."""
    return [
        pytest.param(
            *case,
            arch,
            marks=[] if turn == number % 2 else [pytest.mark.slow],
            id="-".join(str(value) for value in (*case, arch)),
        )
        for number, case in enumerate(cases)
        for turn, arch in enumerate(ARCHS)
    ]


def operands(a_format, M, rng, experts=0, n=N, k=K, edges=False):
    """Activations, scale, weights, scale; with ``edges``, every code and scale byte, NaN and infinite ones too."""
    groups = max(experts, 1)
    low, high = (0, 256) if edges else (100, 150)
    w = rng.integers(0, 256, (groups * n, k // 2), dtype=np.uint8)
    w_scale = rng.integers(low, high, (groups * n, k // 32)).astype(np.uint8)
    scale = rng.integers(low, high, (M, k // 32)).astype(np.uint8)
    if a_format == "e2m1":
        return rng.integers(0, 256, (M, k // 2), dtype=np.uint8), scale, w, w_scale
    if a_format == "bf16":
        bits = rng.integers(0, 1 << 16, (M, k))
        if not edges:  # 24 binades, both signs
            bits = (bits & 0x807F) | (rng.integers(115, 139, (M, k)) << 7)
        return bits.astype(np.uint16), None, w, w_scale
    a = rng.integers(0, 256, (M, k), dtype=np.uint8)
    if edges:  # some blocks keep a NaN
        a = np.where(((a & 0x7F) == 0x7F) & (rng.random((M, k)) < 0.95), np.uint8(8), a)
    else:
        a = np.where((a & 0x7F) == 0x7F, np.uint8(8), a)
    if a_format == "e4m3_f32":
        scale = rng.standard_normal((M, -(-k // 128))).astype(np.float32)
        if edges:
            scale = np.ldexp(scale, rng.integers(-140, 120, scale.shape)).astype(np.float32)
    return a, scale, w, w_scale


def run(built, a, a_scale, w, w_scale, offsets=None, n=N, out_dtype=torch.bfloat16, execution=CHECKED):
    """The kernel's output as bits."""
    out = torch.full((a.shape[0], n), -1.0, dtype=out_dtype)
    scale = np.zeros((1, 1), np.uint8) if a_scale is None else a_scale
    arrays = [a, scale, w, w_scale] + ([] if offsets is None else [offsets])
    executable = VirtualExecutable(built.ptx, built.info)
    with executing(execution):
        executable(*[torch.from_numpy(np.ascontiguousarray(array)) for array in arrays], out)
    return out.view({2: torch.uint16, 4: torch.int32}[out.element_size()]).numpy()


def expected(a, a_scale, w, w_scale, a_format, offsets=None, out_dtype="bfloat16"):
    if offsets is None:
        result = reference.mxfp4_gemm(a, a_scale, w, w_scale, a_format, out_dtype)
    else:
        experts = len(offsets) - 1
        w, w_scale = w.reshape(experts, -1, w.shape[1]), w_scale.reshape(experts, -1, w_scale.shape[1])
        result = reference.grouped_mxfp4_gemm(a, a_scale, w, w_scale, offsets, a_format, out_dtype)
    return result.view({2: np.uint16, 4: np.int32}[result.itemsize])


def assert_same_bits(got, wanted):
    differing = np.argwhere(got != wanted)
    assert got.shape == wanted.shape
    assert len(differing) == 0, f"{len(differing)} of {got.size} differ, first at {differing[0]}"


@pytest.mark.parametrize("edges", [False, True], ids=["values", "edges"])
@pytest.mark.parametrize(("a_format", "experts", "arch"), kernels.GEMMS)
def test_bits_are_the_references(a_format, experts, arch, edges):
    rng = np.random.default_rng(7)
    M = 100
    data = operands(a_format, M, rng, experts, edges=edges)
    offsets = np.array([0, 37, 37, M], np.int32) if experts else None
    wanted = expected(*data, a_format, offsets)
    if edges:
        assert (wanted == 0x7FC0).any()  # NaN
    else:
        assert len(np.unique(wanted)) > 1000
    assert_same_bits(run(kernels.built_gemm(arch, a_format, experts), *data, offsets), wanted)


@pytest.mark.parametrize("a_format", ["e4m3_f32", pytest.param("e4m3_e8m0", marks=pytest.mark.slow)])
def test_no_warps_are_set_apart_where_a_tile_looks_up_its_expert(a_format):
    """TileLang would leave the look-up ahead of the loop to the copying warps alone (``warp_specialization``)."""
    wide = {"block_M": 16, "block_N": 32, "block_K": 512, "threads": 64}
    built = kernels.built_gemm("sm_90a", a_format, 3, N=64, K=1024, **wide)
    assert built.info.threads == (64, 1, 1)
    data = operands(a_format, 40, np.random.default_rng(9), 3, n=64, k=1024)
    offsets = np.array([0, 5, 25, 40], np.int32)
    assert_same_bits(run(built, *data, offsets, n=64), expected(*data, a_format, offsets))


@pytest.mark.parametrize("arch", ARCHS)
def test_infinite_terms_follow_ieee(arch):
    """Finite factors whose term overflows: a fused multiply-add would keep a finite sum."""
    w = np.full((N, K // 2), 0x77, np.uint8)  # 6
    a = np.full((4, K // 2), 0x77, np.uint8)
    a[1, 16:32] = 0xFF  # -6 in the second block
    scale = np.full((4, K // 32), 190, np.uint8)
    data = a, scale, w, np.full((N, K // 32), 190, np.uint8)
    wanted = expected(*data, "e2m1")
    assert set(np.unique(wanted)) == {0x7F80, 0x7FC0}
    assert_same_bits(run(kernels.built_gemm(arch, "e2m1"), *data), wanted)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("M", [1, 64, 65])
def test_rows_do_not_depend_on_the_batch(M, arch):
    rng = np.random.default_rng(3)
    a, scale, w, w_scale = operands("e4m3_f32", 130, rng)
    built = kernels.built_gemm(arch, "e4m3_f32")
    whole = run(built, a, scale, w, w_scale, execution=UNCHECKED)
    order = rng.permutation(130)[:M]
    assert_same_bits(run(built, a[order], scale[order], w, w_scale, execution=UNCHECKED), whole[order])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    "offsets", [[0, 0, 0, 70], [0, 70, 70, 70], [0, 1, 65, 70], [0, 64, 65, 70]], ids=lambda o: "-".join(map(str, o))
)
def test_groups_of_any_size(offsets, arch):
    data = operands("e4m3_f32", 70, np.random.default_rng(4), 3)
    rows = np.array(offsets, np.int32)
    got = run(kernels.built_gemm(arch, "e4m3_f32", 3), *data, rows, execution=UNCHECKED)
    assert_same_bits(got, expected(*data, "e4m3_f32", rows))


@pytest.mark.parametrize("arch", ARCHS)
def test_grouped_gemm_without_rows_does_nothing(arch):
    data = operands("e4m3_f32", 0, np.random.default_rng(4), 3)
    assert run(kernels.built_gemm(arch, "e4m3_f32", 3), *data, np.zeros(4, np.int32)).shape == (0, N)


@pytest.mark.parametrize(("a_format", "arch"), [("e4m3_f32", "sm_80"), ("e4m3_f32", "sm_90a"), ("e4m3_e8m0", "sm_90a")])
@pytest.mark.parametrize("landing", ["late", "early", "random"])
@pytest.mark.parametrize("seed", range(3))
def test_bits_do_not_depend_on_the_schedule(a_format, arch, landing, seed):
    data = operands(a_format, 70, np.random.default_rng(5))
    execution = Execution(landing, seed, preempt=0.2)
    got = run(kernels.built_gemm(arch, a_format), *data, execution=execution)
    assert_same_bits(got, expected(*data, a_format))


TILES = [(16, 32, 256, 128, 3), (32, 64, 256, 128, 1), (64, 128, 128, 256, 3), (128, 64, 384, 256, 0)]


@pytest.mark.parametrize(("block_M", "block_N", "block_K", "threads", "num_stages", "arch"), on_every_arch(*TILES))
def test_bits_do_not_depend_on_the_tiles(block_M, block_N, block_K, threads, num_stages, arch):
    tiles = {"block_M": block_M, "block_N": block_N, "block_K": block_K, "threads": threads, "num_stages": num_stages}
    data = operands("e4m3_f32", 70, np.random.default_rng(6))
    got = run(kernels.built_gemm(arch, "e4m3_f32", **tiles), *data)
    assert_same_bits(got, expected(*data, "e4m3_f32"))


@pytest.mark.parametrize(("n", "k", "arch"), on_every_arch((8, 32), (65, 96)))
def test_ragged_shapes(n, k, arch):
    data = operands("e4m3_e8m0", 5, np.random.default_rng(8), n=n, k=k)
    got = run(kernels.built_gemm(arch, "e4m3_e8m0", N=n, K=k), *data, n=n)
    assert_same_bits(got, expected(*data, "e4m3_e8m0"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("a_format", kernels.A_FORMATS)
@pytest.mark.parametrize(("n", "k"), [(1, 32), (7, 64), (33, 160), (130, 224), (96, 1056)])
def test_ragged_shapes_of_every_format(n, k, a_format, arch):
    for M in (1, 17):
        data = operands(a_format, M, np.random.default_rng(9), n=n, k=k)
        got = run(kernels.built_gemm(arch, a_format, N=n, K=k), *data, n=n)
        assert_same_bits(got, expected(*data, a_format))


@pytest.mark.parametrize(("name", "arch"), on_every_arch(("float16",), ("float32",)))
def test_other_output_types(name, arch):
    data = operands("bf16", 40, np.random.default_rng(10))
    got = run(kernels.built_gemm(arch, "bf16", out=name), *data, out_dtype=getattr(torch, name))
    assert_same_bits(got, expected(*data, "bf16", out_dtype=name))


def test_slices_between_aligned_addresses_work():
    """A batch's slice may begin anywhere; the launcher moves it."""
    a, scale, w, w_scale = operands("e4m3_e8m0", 30, np.random.default_rng(11))
    built = kernels.built_gemm("sm_80", "e4m3_e8m0")
    tensors = [torch.from_numpy(x) for x in (a, scale, w, w_scale)]
    out = torch.full((31 * N + 1,), -1.0, dtype=torch.bfloat16)[1 : 1 + 29 * N].view(29, N)
    assert out.data_ptr() % 16
    assert tensors[1][1:].data_ptr() % 16
    VirtualExecutable(built.ptx, built.info)(tensors[0][1:], tensors[1][1:], tensors[2], tensors[3], out)
    assert_same_bits(out.view(torch.uint16).numpy(), expected(a[1:], scale[1:], w, w_scale, "e4m3_e8m0"))
