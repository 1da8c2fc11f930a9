"""Wheel and sdist hold everything, and a stranger can use them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def _run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=environment.pop("cwd", None),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", out, ROOT)
    return out


def test_the_sdist_holds_what_a_build_needs(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for path in ("csrc/cpu/kernelforge_cpu.h", "csrc/cpu_launch/launch.cpp", "backends/cuda/pyproject.toml", "LICENSE"):
        assert path in names
    assert not [name for name in names if name.endswith(".so")]


def test_the_wheel_holds_headers_tables_templates_and_entry_points(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(n for n in names if n.endswith("entry_points.txt"))
        points = archive.read(entry_points).decode()
    for path in (
        "kernelforge/py.typed",
        "kernelforge/conformance/report.html.j2",
        "kernelforge/ops/mxfp4_gemm/tuning.json",
        "kernelforge_cpu/include/kernelforge_cpu.h",
        "kernelforge_cpu/include/units/kf_gemm_s8.cpp",
        "kernelforge_cpu/tuning/mxfp4_gemm.json",
        "kernelforge_cuda/tuning/mxfp4_gemm.json",
        "kernelforge_cpu/_launch.pyi",
        "kernelforge_ascend/virtual_ascend/include/c_api/asc_simd.h",
    ):
        assert path in names
    assert any(name.startswith("kernelforge_cuda/_virtual.") for name in names)
    for backend in ("cpu", "cuda", "ascend"):
        assert f"{backend} = kernelforge_{backend}.backend" in points


def test_the_wheel_runs_without_the_source_tree(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    program = (
        "import torch, kernelforge as kf, pathlib\n"
        f"assert pathlib.Path(kf.__file__).is_relative_to({str(site)!r})\n"
        "x = torch.randn(3, 64)\n"
        "out = kf.mxfp4_gemm(*kf.quantize_mxfp4(x), *kf.quantize_mxfp4(x), torch.float32)\n"
        "print(bool(((out - x @ x.T).abs() < 0.2 * 64).all()))\n"
    )
    # PYTHONPATH comes before an editable install.
    environment = {"PYTHONPATH": str(site), "KERNELFORGE_CACHE": str(tmp_path / "cache")}
    assert _run(sys.executable, "-c", program, cwd=str(tmp_path), **environment).strip() == "True"
