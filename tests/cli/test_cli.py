"""The command line as a user meets it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kernelforge.backends import registry
from kernelforge.backends.capabilities import FP32_IEEE
from kernelforge.cli import main
from kernelforge.ops.spec import specs

COMMANDS = ("bench", "cache", "conform", "demo", "doctor", "inspect", "list", "moe-plan")


@pytest.fixture
def kernelforge(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(main, list(arguments))


def _modules_after(*arguments: str) -> set[str]:
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom kernelforge.cli import main\n"
        f"r = CliRunner().invoke(main, {list(arguments)!r})\n"
        "assert r.exception is None or isinstance(r.exception, SystemExit), r.exception\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_imports_nothing_heavy_and_names_every_command(kernelforge):
    assert not {"torch", "tilelang", "numpy", "rich"} & _modules_after("--help")
    page = kernelforge("--help").output
    assert all(f"  {command} " in page for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(kernelforge, command):
    result = kernelforge(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4


@pytest.mark.parametrize("command", ["list", "doctor"])
def test_list_and_doctor_do_not_import_tilelang(command):
    assert "tilelang" not in _modules_after(command)


def test_list_shows_every_op_and_backend(kernelforge):
    output = kernelforge("list").output
    devices = [device.name for backend in registry.backends().values() for device in backend.devices()]
    functions = [f"kf.{name}" for op in specs().values() for name in op.functions]
    for name in (*specs(), *functions, *devices):
        assert name in output


def test_list_says_which_op_a_backend_cannot_have_and_why(kernelforge, monkeypatch):
    cpu = registry.backends()["cpu"]
    without = dataclasses.replace(cpu.capabilities, features=cpu.capabilities.features - {FP32_IEEE})
    monkeypatch.setattr(cpu, "capabilities", without)
    output = " ".join(kernelforge("list").output.split())
    assert output.count("cannot") == len(specs())
    assert "sinkhorn: op sinkhorn needs fp32.ieee, which backend 'cpu' does not claim" in output


def test_doctor_says_why_a_device_is_not_here(kernelforge):
    output = " ".join(kernelforge("doctor").output.split())
    for backend in registry.backends().values():
        for device in backend.devices():
            assert device.name in output


def test_doctor_reports_a_broken_plug_in(kernelforge, monkeypatch):
    broken = registry.Broken("acme", "acme.backend:Backend", "ImportError: no module named acme_driver")
    found = registry.backends()
    monkeypatch.setattr(registry, "_discover", lambda: (found, (broken,)))
    result = kernelforge("doctor")
    assert result.exit_code == 1
    assert "no module named acme_driver" in " ".join(result.output.split())


def test_doctor_reports_a_cache_that_cannot_be_written(kernelforge, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERNELFORGE_CACHE", str(tmp_path / "file" / "below"))
    result = kernelforge("doctor")
    assert result.exit_code == 1
    assert "kernel cache" in result.output


def test_cache_path_list_and_clear(kernelforge, monkeypatch, tmp_path):
    monkeypatch.setenv("KERNELFORGE_CACHE", str(tmp_path))
    from kernelforge.runtime import Cache

    Cache().entry("kernel-1", lambda directory: (directory / "code").write_bytes(b"x") and None)
    assert kernelforge("cache", "path").output.strip() == str(tmp_path)
    assert "kernel-1" in kernelforge("cache", "list").output
    assert "removed 1 kernels" in kernelforge("cache", "clear").output
    assert list(tmp_path.iterdir()) == []


def test_inspect_shows_passes_in_order_and_source(kernelforge):
    result = kernelforge("inspect", "mxfp4_gemm", "--backend", "cpu", "--diff", "--source")
    assert result.exit_code == 0, result.output
    steps = [step.__name__ for step in registry.backends()["cpu"].passes("")]
    positions = [result.output.index(f"{i}: {name}") for i, name in enumerate(["portable", *steps])]
    assert positions == sorted(positions)
    assert "kf_mx_block_accumulate" in result.output
    assert "mx_block_accumulate, taken whole" in result.output
    assert "select_sort" not in result.output  # another op's


@pytest.mark.parametrize(
    ("arch", "variant", "whole"),
    [("sm_80", "bf16", False), ("sm_90a", "bf16", True), ("sm_90a", "e4m3_f32", False)],
)
def test_inspect_says_what_cuda_takes_whole(kernelforge, arch, variant, whole):
    result = kernelforge("inspect", "mxfp4_gemm", "--backend", "cuda", "--arch", arch, "--variant", variant)
    assert result.exit_code == 0, result.output
    assert "mx_block_accumulate" in result.output
    assert ("mx_block_accumulate, taken whole" in result.output) is whole


@pytest.mark.parametrize("device", ["cuda:virtual", "ascend:virtual"])
def test_bench_says_whose_time_it_is(kernelforge, monkeypatch, tmp_path, device):
    from kernelforge.bench import Report, Row
    from kernelforge.ops.spec import OpSpec

    def measured(device, command, observe):
        return Report("mxfp4_gemm", command, device, rows=[Row("call", {"ms (executor)": 1.5})])

    monkeypatch.setattr(OpSpec, "benchmark_function", lambda self: measured)
    result = kernelforge("bench", "mxfp4_gemm", "--device", device, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    (page,) = tmp_path.glob("*.md")
    for text in (result.output, page.read_text()):
        assert f"{device} executes on the host: these times are not the device's." in " ".join(text.split())


def test_a_benchmark_names_the_commit_and_the_cpu():
    from kernelforge.backends import device
    from kernelforge.bench import Report

    root = Path(__file__).parents[2]
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = ""
    if (root / ".git").exists():
        commit = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    environment = Report("mxfp4_gemm", "typed", "cpu").environment
    assert device("cpu")[1].detail in environment["processor"]
    assert environment.get("commit", "").removesuffix(" with changes") == commit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "mxfp4_gem", "-b", "cpu"), "wanted one of"),
        (("inspect", "mxfp4_gemm", "-b", "nowhere"), "is not installed"),
        (("inspect", "mxfp4_gemm", "-b", "cpu", "--arch", "pdp11"), "is not one of"),
        (("inspect", "mxfp4_gemm", "-b", "cpu", "--variant", "W3A3"), "e4m3_e8m0"),
        (("bench",), "name one op"),
        (("bench", "mxfp4_gemm", "--device", "nowhere"), "is not installed"),
        (("conform", "--ops", "nothing"), "wanted one of"),
    ],
)
def test_wrong_input_is_answered_in_one_message(kernelforge, arguments, message):
    result = kernelforge(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)
    assert message in " ".join(result.output.split())


@pytest.fixture
def one_case(monkeypatch):
    """Conformance with a single small case, right or wrong."""
    from kernelforge.ops import spec

    op = specs()["mxfp4_gemm"]

    def only(wrong: bool):
        case = next(c for c in op.conformance_cases(0, "ci") if c.name.startswith("dense/e2m1/bfloat16/1x"))
        flip = 1 if wrong else 0
        made = spec.Case(case.name, lambda: {"out": case.expected()["out"] ^ flip}, case.run)
        monkeypatch.setattr(spec.OpSpec, "conformance_cases", lambda self, seed, size: iter([made]))

    return only


def test_conform_succeeds_and_writes_reports(kernelforge, one_case, tmp_path):
    one_case(wrong=False)
    files = {name: str(tmp_path / name) for name in ("junit", "html", "digests")}
    result = kernelforge("conform", "--backends", "cpu", *(x for n, f in files.items() for x in (f"--{n}", f)))
    assert result.exit_code == 0, result.output
    assert all((tmp_path / name).stat().st_size for name in files)
    digests = json.loads((tmp_path / "digests").read_text())["ops"]["mxfp4_gemm"]["all"]
    assert digests["cpu"] == digests["reference"]
    again = kernelforge("conform", "--backends", "cpu", "--against", files["digests"])
    assert again.exit_code == 0, again.output


def test_conform_fails_on_one_wrong_bit(kernelforge, one_case):
    one_case(wrong=True)
    result = kernelforge("conform", "--backends", "cpu")
    assert result.exit_code == 1
    assert "elements differ" in result.output


def test_conform_fails_when_a_named_backend_cannot_run(kernelforge, one_case):
    one_case(wrong=False)
    result = kernelforge("conform", "--backends", "cpu,nowhere")
    assert result.exit_code == 1
    assert "cannot run: nowhere" in result.output
