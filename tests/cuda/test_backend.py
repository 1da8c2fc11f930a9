"""The CUDA backend as the registry, ``doctor`` and the runtime see it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import cuda_kernels as kernels

from kernelforge.backends import Backend, DeviceUnavailable, Execution, LaunchInfo, executing
from kernelforge_cuda import backend as module
from kernelforge_cuda import nvcc
from kernelforge_cuda.backend import CudaBackend
from kernelforge_cuda.virtual import compile_ptx
from kernelforge_cuda.virtual_launch import VirtualExecutable

backend = CudaBackend()


def test_is_a_backend_with_a_real_and_a_virtual_device():
    assert isinstance(backend, Backend)
    real, virtual = backend.devices()
    assert (real.name, real.virtual, virtual.name, virtual.virtual) == ("cuda", False, "cuda:virtual", True)
    assert real.available == torch.cuda.is_available()
    assert real.detail
    assert virtual.detail


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_targets(arch):
    assert arch in backend.archs()
    assert backend.target(arch) == {"kind": "cuda", "arch": arch}
    assert backend.pass_configs(arch, kernels.axpy())["tl.enable_fast_math"] is False


@pytest.mark.parametrize(("scales", "safe"), [("none", True), ("rows", True), ("column", False)])
def test_copies_get_warps_of_their_own_only_where_stages_are_released_late_enough(scales, safe):
    """A column of scales is stored by the copying threads and read behind the product: a race when specialized."""
    function = kernels.pipelined(scales)
    assert backend.pass_configs("sm_90a", function)["tl.disable_warp_specialized"] is not safe
    assert kernels.lowered_pipelined(scales).info.threads == ((256 if safe else 128), 1, 1)


@pytest.mark.skipif(nvcc.find() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("scales", ["none", "rows", "column"])
def test_pipelined_copies_have_no_race(scales):
    lowered = kernels.lowered_pipelined(scales)
    executable = VirtualExecutable(compile_ptx(lowered.source, "sm_90a", flags=nvcc.EXACT_FLAGS), lowered.info)
    a, b = torch.randint(-128, 128, (2, 64, 256), dtype=torch.int8)
    s = torch.randint(-99, 99, (64, 256), dtype=torch.int32)
    dots = torch.einsum("ikc,jkc->kij", a.view(64, 4, 64).int(), b.view(64, 4, 64).int())
    factors = {"none": torch.ones(()), "rows": s.view(64, 4, 64).transpose(0, 1), "column": s[:, :4].T[:, :, None]}
    wanted = (dots * factors[scales]).sum(0, dtype=torch.int32)
    for execution in (Execution("late"), Execution("early", 1, preempt=0.05), Execution("random", 2, preempt=0.05)):
        found = torch.zeros(64, 64, dtype=torch.int32)
        with executing(execution):
            executable(a, b, s, found)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 0), "sm_80"), ((8, 6), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_100a")],
)
def test_arch_follows_the_compute_capability(capability, arch):
    assert module.arch_of_capability(*capability) == arch


@pytest.mark.parametrize("capability", [(7, 5), (10, 3), (12, 0)])
def test_gpu_without_kernels_is_reported(capability):
    with pytest.raises(DeviceUnavailable, match=rf"compute capability {capability[0]}\.{capability[1]}"):
        module.arch_of_capability(*capability)


def test_virtual_arch_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv(module.VIRTUAL_ARCH, raising=False)
    assert backend.default_arch("cuda:virtual") == "sm_80"
    monkeypatch.setenv(module.VIRTUAL_ARCH, "sm_90a")
    assert backend.default_arch("cuda:virtual") == "sm_90a"
    monkeypatch.setenv(module.VIRTUAL_ARCH, "sm_100a")
    with pytest.raises(DeviceUnavailable, match=r"KERNELFORGE_CUDA_VIRTUAL_ARCH is 'sm_100a'.*sm_80 or sm_90a"):
        backend.default_arch("cuda:virtual")


def test_virtual_device_needs_nvcc(monkeypatch):
    monkeypatch.setattr(nvcc, "find", lambda: None)
    _, virtual = backend.devices()
    assert not virtual.available
    assert "install" in virtual.detail


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_real_device_says_so(tmp_path):
    assert "torch" in backend.devices()[0].detail
    with pytest.raises(DeviceUnavailable, match="cannot run here"):
        backend.default_arch("cuda")
    with pytest.raises(DeviceUnavailable, match="cannot run here"):
        backend.load(tmp_path, LaunchInfo("k", (), (), ("1",)), "cuda")


def test_importing_the_backend_does_not_import_the_compiler():
    import subprocess

    code = (
        "import sys; from kernelforge_cuda.backend import CudaBackend; b = CudaBackend(); b.devices(); b.tools(); "
        "b.tuning('mxfp4_gemm'); b.digest_roots(); assert 'tilelang' not in sys.modules and 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PROBLEMS = [
    {"M": M, "N": 4096, "K": 4096, "experts": experts, "a_format": a_format, "arch": arch}
    for M in (1, 16, 17, 64, 65, 4096)
    for experts in (0, 8)
    for a_format in ("e2m1", "e4m3_e8m0", "e4m3_f32", "bf16")
    for arch in ("sm_80", "sm_90a")
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, p.values())))
def test_every_problem_has_a_valid_schedule(problem):
    from kernelforge.runtime.tuning import matches

    rows = backend.tuning("mxfp4_gemm")
    chosen = next(
        row["set"]
        for row in rows
        if all(matches(wanted, problem[name]) for name, wanted in row.get("when", {}).items())
    )
    assert set(chosen) == {"block_M", "block_N", "block_K", "threads", "num_stages"}
    assert chosen["block_K"] % 128 == 0
    assert chosen["threads"] % 32 == 0


def test_op_without_a_table_has_no_rows():
    assert backend.tuning("no_such_op") == ()
