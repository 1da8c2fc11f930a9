"""Wheel and sdist hold everything, and a stranger can use them."""

from __future__ import annotations

import os
import re
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


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def installed(request, built, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A fresh environment's folder of programs, and the environment variables to run them with.

    What kernelforge depends on is lent by the environment that runs the tests. A path added so brings no editable
    install.
    """
    folder = tmp_path_factory.mktemp(request.param)
    _run(sys.executable, "-m", "venv", folder / "venv")
    programs = folder / "venv" / "bin"
    packages = _run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    lent = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (Path(packages) / "lent.pth").write_text("\n".join(lent) + "\n")
    (archive,) = built.glob("*.whl" if request.param == "wheel" else "*.tar.gz")
    pip = (programs / "python", "-m", "pip", "install", "--quiet", "--no-deps")
    _run(*pip, "--ignore-installed", archive, cwd=str(folder))
    return programs, {"cwd": str(folder), "KERNELFORGE_CACHE": str(folder / "cache")}


def test_an_installed_package_tells_what_it_can_do(installed):
    programs, environment = installed
    where = _run(programs / "python", "-c", "import kernelforge; print(kernelforge.__file__)", **environment)
    assert Path(where.strip()).is_relative_to(programs.parent)
    listed = _run(programs / "kernelforge", "list", **environment)
    assert "mxfp4_gemm" in listed
    assert "kernelforge_cpu" not in listed  # no backend failed to load
    doctor = _run(programs / "kernelforge", "doctor", **environment)
    assert re.search(r"\bcpu\b", doctor)
    assert "Traceback" not in doctor


def test_the_readmes_program_runs_as_installed(installed):
    programs, environment = installed
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = program.replace("11008", "64") + "\nprint(tuple(y.shape), tuple(y_virtual.shape))\n"
    assert _run(programs / "python", "-c", program, **environment).strip() == "(16, 64) (16, 64)"


def test_the_cuda_extra_is_all_that_a_kernel_needs(tmp_path):
    """No toolkit of the machine's own is used: neither its nvcc nor a header."""
    extra = re.findall(r'"(nvidia-[^"]*)"', (ROOT / "pyproject.toml").read_text())
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", tmp_path / "extra", *extra)
    program = (
        "import torch, kernelforge as kf; from kernelforge_cuda import nvcc; "
        "codes, scale = torch.arange(16).to(torch.uint8).repeat(8, 1), torch.full((8, 1), 127, dtype=torch.uint8); "
        "virtual, cpu = (kf.mxfp4_gemm(codes, scale, codes, scale, backend=b) for b in ('cuda:virtual', 'cpu')); "
        "print(nvcc.find(), torch.equal(virtual, cpu))"
    )
    environment = {"PATH": "/usr/bin:/bin", "CUDA_HOME": "", "CUDA_PATH": "", "PYTHONPATH": str(tmp_path / "extra")}
    environment |= {"KERNELFORGE_CACHE": str(tmp_path / "cache"), "cwd": str(tmp_path)}
    found, equal = _run(sys.executable, "-c", program, **environment).split()
    assert Path(found).is_relative_to(tmp_path / "extra")
    assert equal == "True"
